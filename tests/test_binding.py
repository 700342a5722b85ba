"""What crosses the binding: arguments by position and name, each tensor checked against the description."""

import re
import threading

import pytest
import torch

from genfast import _native, ops
from genfast._register import as_tuple
from genfast.ops import rbm
from genfast.ops._masked_plan import plan
from genfast.reference.masked_autoregressive import Network
from tests.conftest import CPU_TARGETS, Backend
from tests.harness import RecordOps, cotangents_of, vjp
from tests.harness.collect import all_specs

N, D, K, BINS, HIDDEN = 5, 4, 3, 6, 7


def rows(*size, dtype=torch.float32):
    return torch.rand(*size, dtype=dtype)


def spline(packed, *, grads):
    prefix = "grad_" if grads else ""
    sizes = {"params": 3 * BINS - 1} if packed else {"widths": BINS, "heights": BINS, "slopes": BINS - 1}
    names = ("widths", "heights", "slopes", "params")
    return {prefix + name: rows(1, N, sizes[name]) if name in sizes else None for name in names}


SPLINE = {
    "inner": 1, "left": -3.0, "right": 3.0, "bottom": -3.0, "top": 3.0, "min_width": 1e-3, "min_height": 1e-3,
    "min_slope": 1e-3, "tails": 0, "dialect": 0, "inverse": False,
}  # fmt: skip
MAP = {"map": 0, "clamp": 1.0, "offset": 0.0, "min_scale": 0.0, "gain": 1.0, "limit": 40.0, "inverse": False}


MASKED = {
    "total": 0, "rows": 0, "packed": 0, "activation": 1, "kind": 0, "n_params": 2, "inverse": True, "c0": 1.0,
    "c1": 0.0, "c2": 0.0, "c3": 1.0, "c4": 40.0, "pass": True,
}  # fmt: skip


def masked(*, backward=False):
    """A network of two inputs and three hidden units, one of which sees no input."""
    network = Network(((1, 2), (1, 0, 1)), 2, "interleaved", False, (True,))
    p = plan(network, backward, torch.device("cpu"))
    tensors = {"z": rows(N, 2), "weights": rows(18), "biases": rows(7), "context": rows(N, 3)}
    return p, tensors, {"plan": p.vector, **MASKED, "total": p.total, "rows": p.rows, "packed": p.packed_pass}


def masked_forward():
    p, tensors, settings = masked(backward=True)
    total = {"total": p.total + p.sums}
    return {**tensors, **settings, **total, "x": rows(N, 2), "log_det": rows(N), "sums": rows(p.sums, N)}


def masked_backward():
    p, tensors, settings = masked(backward=True)
    return {
        **tensors, "x": rows(N, 2), "grad_x": rows(N, 2), "grad_log_det": rows(N), "sums": rows(p.sums, N), **settings,
        "total": p.total + p.values + p.sums, "n_values": p.values, "n_sums": p.sums, "tiles": p.tiles,
        "grad_z": rows(N, 2), "grad_weights": rows(18), "grad_biases": rows(7), "grad_context": rows(N, 3),
    }  # fmt: skip


def channel_map():
    """Of images [N, D, 2, 3]."""
    triangles = {"lower": rows(D, D), "upper": rows(D, D), "diag": rows(D), "sign": torch.ones(D)}
    vectors = {"permutation": torch.arange(D), "log_scale": rows(D), "shift": rows(D), "bias": rows(D)}
    return {**triangles, **vectors, "softplus": False, "min_diag": 0.0, "inverse": False, "channels_last": False}


def planar():
    return {"w": rows(K, D), "u": rows(K, D), "b": rows(K)}


# A call of every kernel that succeeds; those that get what their op gets come from its spec (below). Sizes differ, so
# that no tensor fits in place of another by chance.
CALLS = {
    "planar_forward": lambda: {
        "input": rows(N, D), **planar(), "inverse": False, "output": rows(N, D), "log_det": rows(N), "a": rows(K, N),
    },
    "planar_backward": lambda: {
        "input": rows(N, D), "output": rows(N, D), "a": rows(K, N), **planar(), "grad_output": rows(N, D),
        "grad_log_det": rows(N), "inverse": False, "grad_input": rows(N, D), "grad_w": rows(K, D),
        "grad_u": rows(K, D), "grad_b": rows(K),
    },
    "channel_affine_forward": lambda: {
        "input": rows(N, D, 2, 3), **channel_map(), "output": rows(N, D, 2, 3), "log_det": rows(N),
    },
    "channel_affine_backward": lambda: {
        "grad_output": rows(N, D, 2, 3), "grad_log_det": rows(N), "kept": rows(N, D, 2, 3), **channel_map(),
        "grad_input": rows(N, D, 2, 3), "grad_lower": rows(D, D), "grad_upper": rows(D, D), "grad_diag": rows(D),
        "grad_log_scale": rows(D), "grad_shift": rows(D), "grad_bias": rows(D),
    },
    "coupling_forward": lambda: {
        "x": rows(N, D), "shift": rows(N, D), "scale": rows(N, D), "params": None, "layout": 0, **MAP,
        "y": rows(N, D), "log_det": rows(N),
    },
    "coupling_backward": lambda: {
        "grad_y": rows(N, D), "grad_log_det": rows(N), "kept": rows(N, D), "scale": None, "params": rows(N, 2 * D),
        "layout": 2, **MAP, "grad_x": rows(N, D), "grad_shift": None, "grad_scale": None,
        "grad_params": rows(N, 2 * D),
    },
    "rq_spline_forward": lambda: {
        "x": rows(1, N), **spline(True, grads=False), **SPLINE, "y": rows(1, N), "log_det": rows(1, N),
    },
    "rq_spline_backward": lambda: {
        "x": rows(1, N), **spline(False, grads=False), "grad_y": rows(1, N), "grad_log_det": rows(1, N), **SPLINE,
        "grad_x": rows(1, N), **spline(False, grads=True),
    },
    "masked_autoregressive_forward": masked_forward,
    "masked_autoregressive_backward": masked_backward,
    "boltzmann_gibbs": lambda: {
        "s": rows(N, D).round(), "J": torch.zeros(D, D), "bias": rows(D), "temperature": torch.ones(N),
        "schedule": torch.ones(2), "clamp": torch.zeros(N, D, dtype=torch.bool), "seed": torch.tensor(1),
        "spins": False, "random_order": True, "first_chain": 0, "first_step": 0, "out": rows(N, D),
        "status": torch.ones(1, dtype=torch.int32),
    },
    "rbm_ais": lambda: {
        "v": rows(N, D).round(), "W": rows(D, HIDDEN), "vbias": rows(D), "hbias": rows(HIDDEN), "base": rows(D),
        "slope": torch.arange(D), "betas": rows(K), "next_betas": rows(K), "log_weights": rows(N, dtype=torch.float64),
        "seed": torch.tensor(1), "slope_unit": 0.5, "first_run": 0, "first_step": 0, "out_v": rows(N, D),
        "out_log_weights": rows(N, dtype=torch.float64),
    },
    "rbm_pseudo_likelihood": lambda: {
        "v": rows(N, D).round(), "vbias": rows(D), "fields": rows(N, HIDDEN), "weights": rows(D, HIDDEN),
        "row_sums": rows(D), "factors": 3, "out": rows(N),
    },
    "rbm_gibbs": lambda: {
        "v": rows(N, D).round(), "W": rows(D, HIDDEN), "vbias": rows(D), "hbias": rows(HIDDEN), "beta": rows(N),
        "clamp": torch.zeros(N, D, dtype=torch.bool), "seed": torch.tensor(1), "n_steps": 1, "first_chain": 0,
        "first_step": 0, "out_v": rows(N, D), "out_h": rows(N, HIDDEN), "status": torch.ones(1, dtype=torch.int32),
    },
    "dbm_gibbs": lambda: {
        "states": rows(N, D + 2 + 3 + 1).round(), "W0": rows(D, 2), "W1": rows(2, 3), "W2": rows(3, 1), "W3": None,
        "W4": None, "W5": None, "W6": None, "biases": rows(D + 2 + 3 + 1), "beta": rows(N),
        "clamp": torch.zeros(N, D + 2 + 3 + 1, dtype=torch.bool), "seed": torch.tensor(1), "n_steps": 1,
        "first_chain": 0, "first_step": 0, "held": 0, "out": rows(N, D + 2 + 3 + 1),
        "status": torch.ones(1, dtype=torch.int32),
    },
    "tempering_swap": lambda: {
        "energies": rows(N, D, dtype=torch.float64), "betas": rows(D, dtype=torch.float64),
        "order": torch.arange(D).repeat(N, 1), "seed": torch.tensor(1), "first_chain": 0, "step": 0,
        "out_order": torch.zeros(N, D, dtype=torch.int64), "probability": rows(N, D - 1),
        "status": torch.ones(1, dtype=torch.int32),
    },
    "rbm_joint_energy": lambda: {
        "v": rows(N, D).round(), "h": rows(N, HIDDEN).round(), "W": rows(D, HIDDEN), "vbias": rows(D),
        "hbias": rows(HIDDEN), "energy": rows(N, dtype=torch.float64), "status": torch.ones(1, dtype=torch.int32),
    },
    "lattice_gibbs": lambda: {
        "s": rows(N, 3, D).round(), "beta": rows(2, N) + 1, "clamp": torch.zeros(N, 3, D, dtype=torch.bool),
        "seed": torch.tensor(1), "spin": False, "periodic_y": False, "periodic_x": True, "coupling_y": 1.0,
        "coupling_x": 1.0, "field": 0.0, "n_sweeps": 2, "first_chain": 0, "first_step": 0, "out": rows(N, 3, D),
        "status": torch.ones(1, dtype=torch.int32),
    },
    "ising_gibbs": lambda: {  # a path of four units
        "s": rows(N, D).round(), "row_ptr": torch.tensor([0, 1, 3, 5, 6]), "columns": torch.tensor([1, 0, 2, 1, 3, 2]),
        "weights": torch.ones(6), "bias": rows(D), "order": torch.tensor([0, 2, 1, 3]),
        "offsets": torch.tensor([0, 2, 4]), "beta": rows(2, N) + 1, "clamp": torch.zeros(N, D, dtype=torch.bool),
        "seed": torch.tensor(1), "spin": False, "validate": True, "n_colours": 2, "n_sweeps": 2,
        "first_chain": 0, "first_step": 0, "out": rows(N, D), "status": torch.ones(1, dtype=torch.int32),
    },
    "dbm_mean_field": lambda: {
        "U1": rows(D, 2), "U2": rows(2, 1), "U3": None, "U4": None, "U5": None, "U6": None, "max_iterations": 3,
        "tolerance": 1e-3, "fields": rows(N, D + 3), "means": rows(N, D + 3),
        "n_iterations": torch.zeros(N, dtype=torch.int64),
    },
    "rbm_free_energy": lambda: {
        "v": rows(N, D), "vbias": rows(D), "fields": rows(N, HIDDEN), "energy": rows(N),
    },
    "rbm_cd": lambda: {
        "data": rows(N, D).round(), "start": rows(N, D).round(), "W": rows(D, HIDDEN), "vbias": rows(D),
        "hbias": rows(HIDDEN), "seed": torch.tensor(1), "draws": False, "n_steps": 1, "first_chain": 0,
        "first_step": 0, "out_v": rows(N, D), "grad_W": rows(D, HIDDEN), "grad_vbias": rows(D),
        "grad_hbias": rows(HIDDEN), "loss": rows(1), "status": torch.ones(1, dtype=torch.int32),
    },
    "rbm_pcd_updates": lambda: {
        "starts": torch.tensor([0, 1, 2]), "indices": torch.tensor([0, 1]), "values": rows(2),
        "edges": torch.tensor([0, 2]), "seed": torch.tensor(1), "learning_rate": 0.1, "first_step": 0,
        "W": rows(D, 16), "vbias": rows(D), "hbias": rows(16), "chains": rows(N, HIDDEN).round(),
    },
    "rbm_sparse_product": lambda: {
        "left": rows(N, D), "right": rows(D, HIDDEN), "scale": rows(D), "init": rows(HIDDEN), "transposed": False,
        "out": rows(N, HIDDEN),
    },
}  # fmt: skip


def calls_of_specs():
    """Calls of the kernels that are not above, as the first case of an op's spec makes them."""
    found = {}
    for _, spec in all_specs():
        tensors = spec.inputs(spec.cases[0], torch.float32)
        with RecordOps() as record:
            vjp(spec.function, tensors, next(iter(spec.variants.values())), cotangents_of(spec.function(**tensors)))
        for op, args in record.calls:
            name, taken = op._schema.name.removeprefix("genfast::"), [a.name for a in op._schema.arguments]
            wanted = _native.kernels().get(name, ())
            if name not in CALLS and wanted[: len(taken)] == tuple(taken):
                values = [*args, *as_tuple(op(*args))]  # the results follow in their order
                found[name] = lambda names=wanted, values=values: dict(zip(names, map(copied, values), strict=True))
    return found


def copied(value):
    """What the kernel gets of a value of the op, which has an empty tensor where there is no result."""
    if not isinstance(value, torch.Tensor):
        return value
    return None if value.shape == (0,) else value.detach().clone(memory_format=torch.contiguous_format)


CALLS |= calls_of_specs()

# Left out, these are not there, or not wanted.
OPTIONAL = {
    ("planar_forward", "a"), ("planar_backward", "output"), ("planar_backward", "a"), ("rbm_gibbs", "clamp"),
    ("boltzmann_gibbs", "clamp"), ("boltzmann_gibbs", "status"),
    ("rbm_gibbs", "status"), ("dbm_gibbs", "clamp"), ("dbm_gibbs", "status"),
    *(("dbm_gibbs", f"W{i}") for i in range(1, 7)), *(("dbm_mean_field", f"U{i}") for i in range(1, 7)),
    ("rbm_sparse_product", "scale"), ("rbm_sparse_product", "init"),
    ("tempering_swap", "betas"), ("tempering_swap", "order"), ("tempering_swap", "status"),
    ("rbm_joint_energy", "status"),
    ("rbm_ais", "log_weights"),
    ("lattice_gibbs", "clamp"), ("lattice_gibbs", "status"), ("ising_gibbs", "clamp"), ("ising_gibbs", "status"),
    *(("rbm_cd", p) for p in ("data", "start", "loss", "status")),
    *((f"channel_affine_{d}", p) for d in ("forward", "backward")
      for p in ("sign", "permutation", "log_scale", "shift", "bias")),
    *(("channel_affine_backward", f"grad_{p}") for p in ("lower", "upper", "diag", "log_scale", "shift", "bias")),
}  # fmt: skip


def call(name, arguments):
    return getattr(_native, name)(**arguments)


def tensors(arguments):
    return {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}


@pytest.fixture(autouse=True, params=["torch's C interface", "attributes"])
def _kernels(native, request):
    """On the best instruction set, with both ways of reading a tensor."""
    if request.param == "attributes":
        _native.load().set_read_attributes(True)
        yield
        _native.load().set_read_attributes(False)
    else:
        if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
            pytest.skip("this torch has no C interface")
        yield


def test_every_kernel_is_described_and_called_here():
    assert set(CALLS) == set(_native.kernels())
    for name, arguments in CALLS.items():
        assert tuple(arguments()) == _native.kernels()[name]


@pytest.mark.parametrize("name", CALLS)
def test_by_position_by_keyword_and_mixed(name):
    kernel, arguments = getattr(_native, name), CALLS[name]()
    values, results = list(arguments.values()), []
    outputs = [k for k in arguments if k.startswith(("out", "y", "log_det", "grad_", "energy", "a", "status"))]
    for split in (0, 2, len(values)):
        fresh = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        kernel(*list(fresh.values())[:split], **dict(list(fresh.items())[split:][::-1]))
        results.append([fresh[k] for k in outputs if isinstance(fresh[k], torch.Tensor)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_every_tensor_is_checked(name):
    """Another shape, dtype or layout than described: an error that names the argument, and nothing is written."""
    good = CALLS[name]()
    strided = {"x", "shift", "scale", "params", "grad_y", "grad_log_det", "kept"} if name.startswith("coupling") else ()
    for key, t in tensors(good).items():
        bad = {"another shape": t.new_zeros(*t.shape, 1), "another dtype": t.to(torch.int16)}
        if t.dim() and (name, key) not in (
            ("boltzmann_gibbs", "schedule"),
            ("rbm_cd", "data"),
            ("rbm_pcd_updates", "chains"),
        ):  # no other tensor has its size
            bad["a longer one"] = t.new_zeros(t.shape[0] + 1, *t.shape[1:])
        if t.dim() and t.numel() > 1 and key not in strided:
            bad["gaps"] = torch.stack((t, t), -1)[..., 0]
        for what, wrong in bad.items():
            arguments = CALLS[name]()
            before = {k: v.clone() for k, v in tensors(arguments).items()}
            with pytest.raises(ValueError, match=re.escape(": expected ")) as error:
                call(name, {**arguments, key: wrong})
            # A first tensor of a new size is taken at its word; the next one of that size is then refused.
            assert str(error.value).split(":")[0] in good, what
            if what != "a longer one":
                assert str(error.value).startswith(f"{key}: expected "), what
            assert all(torch.equal(v, before[k]) for k, v in tensors(arguments).items()), (key, what)


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_is_wanted(name):
    good = CALLS[name]()
    for key, value in good.items():
        without = {k: v for k, v in good.items() if k != key}
        if value is None or (name, key) in OPTIONAL:
            continue
        with pytest.raises(
            (TypeError, ValueError), match=rf"missing argument '{key}'|expected .*({key}|knots)|packed alike"
        ):
            call(name, without)
    with pytest.raises(TypeError, match=rf"{name}: no argument 'colour'"):
        call(name, {**good, "colour": 1})
    with pytest.raises(TypeError, match=rf"{name}: takes {len(good)} arguments, got {len(good) + 1}"):
        getattr(_native, name)(*good.values(), 1)
    with pytest.raises(TypeError, match=rf"{name}: got two values for {next(iter(good))}"):
        getattr(_native, name)(next(iter(good.values())), **good)


def test_packed_parameters_are_wanted_where_their_gradient_tells_their_size():
    packed = CALLS["rq_spline_backward"]() | spline(True, grads=False) | spline(True, grads=True)
    call("rq_spline_backward", packed)
    with pytest.raises(ValueError, match="rq_spline: expected widths, heights and slopes, or params"):
        call("rq_spline_backward", packed | {"params": None})


def test_scalars_of_another_type_are_refused():
    for name, key, wrong, want in [
        ("planar_forward", "inverse", 1, "a bool, got int"),
        ("coupling_forward", "map", 0.5, "an int, got float"),
        ("coupling_forward", "gain", "1", "a float, got str"),
        ("rbm_gibbs", "n_steps", None, "an int, got NoneType"),
        ("planar_forward", "w", 3, "a torch.Tensor, got int"),
    ]:
        with pytest.raises(TypeError, match=f"{name}: {key}: expected {want}"):
            call(name, {**CALLS[name](), key: wrong})
    with pytest.raises(ValueError, match="map: no scale map 7"):
        call("coupling_forward", {**CALLS["coupling_forward"](), "map": 7})


def test_a_tensor_without_memory_is_refused():
    arguments = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in CALLS["planar_forward"]().items()}
    with pytest.raises(ValueError, match=r"input: expected a tensor with memory"):
        call("planar_forward", arguments)


def test_a_lazily_negated_tensor_is_refused():
    arguments = CALLS["planar_forward"]()
    with pytest.raises(ValueError, match=r"w: expected a tensor without the negative bit"):
        call("planar_forward", {**arguments, "w": torch._neg_view(arguments["w"])})


def test_coupling_reads_strides():
    good = CALLS["coupling_forward"]()
    call("coupling_forward", good)
    wide = {k: torch.stack([t] * 3, 1)[:, 1:2].squeeze(1) for k, t in good.items() if k in ("x", "shift", "scale")}
    columns = {k: t.t().contiguous().t() for k, t in wide.items()}
    for other in (wide, columns):
        assert not any(t.is_contiguous() for t in other.values())
        again = {**good, **other, "y": rows(N, D), "log_det": rows(N)}
        call("coupling_forward", again)
        assert torch.equal(again["y"], good["y"])
        assert torch.equal(again["log_det"], good["log_det"])


def test_status_is_returned_or_written():
    good = CALLS["rbm_gibbs"]()
    assert call("rbm_gibbs", good) is None
    assert good["status"].item() == 0
    assert call("rbm_gibbs", {**good, "status": None}) == 0
    assert call("rbm_gibbs", {**good, "status": None, "v": good["v"] + 2}) == 2
    assert call("rbm_sparse_product", CALLS["rbm_sparse_product"]()) is False


def test_narrow_products_are_never_sparse():
    """What ops.rbm asks the kernel for begins where a matrix without any entries is worth it."""
    narrow, zeros = rbm._DENSE, torch.zeros(64, 64)
    for columns in (narrow, narrow + 1):
        right, out = rows(64, columns), rows(64, columns)
        assert _native.rbm_sparse_product(zeros, right, None, None, False, out) is (columns > narrow)
        assert _native.rbm_sparse_product(zeros, right, rows(64), None, True, out) is (columns > narrow)


@pytest.fixture
def allocated(monkeypatch):
    """Sizes of the workspaces that calls allocate; the thread's kept one is gone before."""
    sizes, original = [], torch.Tensor.new_empty

    def new_empty(self, *size, **options):
        sizes.append(size[0])
        return original(self, *size, **options)

    big = CALLS["rbm_gibbs"]() | {"W": rows(3000, 100), "hbias": rows(100), "out_h": rows(N, 100)}
    big |= {k: rows(N, 3000).round() for k in ("v", "out_v")} | {"vbias": rows(3000), "clamp": None}
    call("rbm_gibbs", big)
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    return sizes, big


def test_a_workspace_is_kept_from_call_to_call(allocated):
    sizes, big = allocated
    small = CALLS["rbm_gibbs"]()
    call("rbm_gibbs", big)
    assert sizes == []
    call("rbm_gibbs", small)
    assert len(sizes) == 1, "a large workspace was held for a small call"
    call("rbm_gibbs", small)
    call("planar_backward", CALLS["planar_backward"]())
    assert len(sizes) == 1
    call("rbm_gibbs", big)
    assert len(sizes) == 2
    try:
        _native.load().set_keep_workspaces(False)
        call("rbm_gibbs", small)
        call("rbm_gibbs", small)
        assert len(sizes) == 4
    finally:
        _native.load().set_keep_workspaces(True)


def test_a_call_without_a_workspace_leaves_the_kept_one(allocated):
    sizes, big = allocated
    call("rq_spline_backward", CALLS["rq_spline_backward"]())  # each number has parameters of its own: nothing to sum
    call("rbm_gibbs", big)
    assert sizes == []


def test_each_thread_has_a_workspace_of_its_own(allocated):
    sizes, big = allocated
    threads = [threading.Thread(target=call, args=("rbm_gibbs", big)) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(sizes) == 2


def test_long_calls_let_other_threads_run():
    big = CALLS["rbm_gibbs"]() | {"W": rows(500, 500), "hbias": rows(500), "out_h": rows(N, 500), "n_steps": 4000}
    big |= {k: rows(N, 500).round() for k in ("v", "out_v")} | {"vbias": rows(500), "clamp": None}
    started, ticks = threading.Event(), []

    def run():
        started.set()
        call("rbm_gibbs", big)

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    while thread.is_alive():
        ticks.append(None)
        thread.join(1e-3)
    assert len(ticks) > 5


@pytest.mark.parametrize("target", CPU_TARGETS)
@pytest.mark.parametrize(("d", "k"), [(3, 0), (0, 2), (0, 0)])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("flow", ["planar", "radial"])
def test_flows_of_no_layers_or_no_columns(target, flow, d, k, inverse):
    """The identity; what the backward needs is there, though a tensor without elements is a null pointer."""
    name = flow + "_flow" + ("_inverse" if inverse else "")
    z, matrix, *vectors = (t.requires_grad_() for t in (rows(4, d), rows(k, d), rows(k) + 1, rows(k)))
    with Backend(target).use():
        x, log_det = getattr(ops, name)(z, matrix, *([matrix, vectors[0]] if flow == "planar" else vectors))
        assert torch.equal(x, z)
        grads = torch.autograd.grad(x.sum() + log_det.sum(), (z, matrix, vectors[0]))
    assert torch.equal(grads[0], torch.ones(4, d))
    assert all((t.abs() < 1e-6).all() for t in (log_det, *grads[1:]))


@pytest.mark.skipif("simt" not in _native.load().build_info()["cpu_targets"], reason="a build without simt")
def test_a_gpu_computes_a_anew_where_it_was_not_kept():
    kept = CALLS["planar_backward"]()
    forward = {**CALLS["planar_forward"](), **{k: kept[k] for k in ("input", "w", "u", "b", "output", "a")}}
    call("planar_forward", forward)
    anew = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kept.items()} | {"output": None, "a": None}
    with Backend("simt").use():
        call("planar_backward", kept)
        call("planar_backward", anew)
    for k in ("grad_input", "grad_w", "grad_u", "grad_b"):
        assert torch.allclose(kept[k], anew[k], rtol=1e-4, atol=1e-5), k
