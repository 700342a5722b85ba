"""Data sets: shapes and ranges, files that are found, fetched or broken, and the densities' formulas."""

import gzip
import hashlib
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from genfast import data
from genfast.data import _images

MNIST = Path(os.environ.get("GENFAST_DATA_DIR", Path(__file__).resolve().parents[2] / "shared" / "data"))


def idx(array):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_images(folder, *, n=7, packed=True):
    """The four files of a small set of 28 x 28 images."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    written = {}
    for part, size in (("train", n), ("t10k", 3)):
        for kind, shape in (("images-idx3", (size, 28, 28)), ("labels-idx1", (size,))):
            array = rng.integers(0, 256 if "images" in kind else 10, shape)
            name = f"{part}-{kind}-ubyte"
            (folder / f"{name}.gz" if packed else folder / name).write_bytes(
                gzip.compress(idx(array)) if packed else idx(array)
            )
            written[name] = array
    return written


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data folder, an empty cache and no network."""
    monkeypatch.delenv("GENFAST_DATA_DIR", raising=False)
    monkeypatch.setenv("GENFAST_CACHE_DIR", str(tmp_path / "cache"))
    dead = "http://127.0.0.1:9/"
    monkeypatch.setattr(_images, "_MIRRORS", {"mnist": (dead, dead), "fashion-mnist": (dead,)})
    return tmp_path


def test_bars_and_stripes():
    best = {}
    for n, repeats in ((3, True), (3, False), (4, True), (4, False)):
        x = data.bars_and_stripes(n, repeats=repeats)
        assert x.shape == (2 ** (n + 1) - 2 * (not repeats), n * n)
        images = x.reshape(-1, n, n)
        bars, stripes = (images == images[:, :, :1]).flatten(1).all(1), (images == images[:, :1]).flatten(1).all(1)
        assert (bars | stripes).all()
        counts = x.unique(dim=0, return_counts=True)[1].double()
        assert len(counts) == 2 ** (n + 1) - 2
        best[n, repeats] = float((counts * (counts / counts.sum()).log()).sum())
    assert best[3, True] == pytest.approx(-41.589, abs=1e-3)
    assert best[4, False] == pytest.approx(-102.036, abs=1e-3)
    loaded = data.load("bars-and-stripes")
    assert torch.equal(loaded.x, data.bars_and_stripes(3))
    assert loaded.shape == (3, 3)
    with pytest.raises(ValueError, match="split: got 'test', which is no option of the patterns bars-and-stripes"):
        data.load("bars-and-stripes", split="test")
    for n in (0, 17, 2.0):
        with pytest.raises(ValueError, match="n: got"):
            data.bars_and_stripes(n)


def test_digits():
    pytest.importorskip("sklearn")
    everything = data.load("digits")
    assert everything.x.shape == (1797, 64)
    assert everything.x.dtype == torch.float32
    assert everything.y.dtype == torch.int64
    assert everything.shape == (8, 8)
    assert (everything.x.min(), everything.x.max()) == (0, 1)
    train, test = (data.load("digits", split=split) for split in ("train", "test"))
    assert torch.equal(torch.cat([train.x, test.x]), everything.x)
    assert torch.equal(torch.cat([train.y, test.y]), everything.y)
    binary = everything.binarized()
    assert torch.equal(binary.x, (everything.x > 0.5).float())
    assert torch.equal(binary.y, everything.y)


@pytest.mark.skipif(not (MNIST / "mnist").is_dir(), reason="no MNIST files; set GENFAST_DATA_DIR")
def test_real_mnist(monkeypatch):
    monkeypatch.setenv("GENFAST_DATA_DIR", str(MNIST))
    train, test = data.load("mnist"), data.load("mnist", split="test")
    assert train.x.shape == (60000, 784)
    assert test.x.shape == (10000, 784)
    assert train.shape == (28, 28)
    assert train.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert train.binarized().x.mean().item() == pytest.approx(0.132, abs=0.002)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "below"), [("mnist", "mnist"), ("mnist", "."), ("fashion-mnist", "fashion-mnist")])
def test_files_in_the_data_folder(nowhere, monkeypatch, packed, name, below):
    written = write_images(nowhere / "data" / below, packed=packed)
    monkeypatch.setenv("GENFAST_DATA_DIR", str(nowhere / "data"))
    dataset = data.load(name, split="all")
    assert dataset.x.shape == (10, 784)
    want = np.concatenate([written["train-images-idx3-ubyte"], written["t10k-images-idx3-ubyte"]]).reshape(10, 784)
    assert torch.equal(dataset.x, torch.from_numpy(want.astype(np.float32) / 255))
    assert dataset.y.tolist() == [*written["train-labels-idx1-ubyte"], *written["t10k-labels-idx1-ubyte"]]


def test_files_in_the_cache(nowhere):
    write_images(nowhere / "cache" / "mnist")
    assert data.load("mnist").x.shape == (7, 784)


def test_missing_files_say_where_they_may_lie(nowhere):
    pytest.importorskip("pooch")
    with pytest.raises(data.DataError, match=r"mnist is not here and could not be fetched.*GENFAST_DATA_DIR"):
        data.load("mnist")


@pytest.fixture
def mirror(nowhere, monkeypatch):
    """A mirror on this machine, behind a dead one."""
    import functools
    import http.server
    import threading

    pytest.importorskip("pooch")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    write_images(nowhere / "mirror")
    handler = functools.partial(Quiet, directory=str(nowhere / "mirror"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = ("http://127.0.0.1:9/", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(_images, "_MIRRORS", {"mnist": urls})
        yield nowhere / "mirror"
        server.shutdown()


def test_files_are_fetched_from_the_next_mirror_and_kept(mirror, monkeypatch):
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in mirror.iterdir()}
    monkeypatch.setattr(_images, "_SHA256", {"mnist": sums})
    first = data.load("mnist", split="all")
    assert first.x.shape == (10, 784)
    for path in mirror.iterdir():
        path.unlink()
    assert torch.equal(data.load("mnist", split="all").x, first.x)


def test_a_wrong_checksum_is_refused(mirror, nowhere):
    with pytest.raises(data.DataError, match=r"could not be fetched.*hash"):
        data.load("mnist")
    assert not list((nowhere / "cache").rglob("*.gz"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an idx file"),
        (b"hello there", "is not an idx file"),
        (idx(np.zeros((4, 28, 28)))[:1000], "holds 984 bytes of data, its header says 3136"),
        (b"\0\0\x08\x03\0\0", "ends within its header"),
        (gzip.compress(idx(np.zeros((4, 28, 28))))[:40], "cannot read"),
        (gzip.compress(b"")[:10] + b"\7" * 40, "cannot read.*invalid block type"),
        (idx(np.zeros((4, 14, 14))), r"shapes \[4, 14, 14\] and \[7\], want \[N, 28, 28\]"),
        (idx(np.zeros((4, 28, 28))), r"shapes \[4, 28, 28\] and \[7\]"),
    ],
    # Not made of the bytes: gzip's hold the time, and xdist wants the same tests in every worker.
    ids=["empty", "text", "short", "header", "cut gzip", "damaged gzip", "small images", "few images"],
)
def test_broken_files_are_named(nowhere, monkeypatch, content, message):
    write_images(nowhere / "mnist", packed=True)
    monkeypatch.setenv("GENFAST_DATA_DIR", str(nowhere))
    (nowhere / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(data.DataError, match=message) as error:
        data.load("mnist")
    assert "train-images-idx3-ubyte.gz" in str(error.value)


def test_unknown_names_and_options():
    with pytest.raises(data.DataError, match=r"unknown data set 'cifar'; there are digits, mnist.*, or give a \.npy"):
        data.load("cifar")
    with pytest.raises(ValueError, match="split: got 'valid'"):
        data.load("digits", split="valid")
    with pytest.raises(ValueError, match="n: got 0"):
        data.load("moons", n=0)
    for name, options, message in (
        ("moons", {"split": "test"}, "split: got 'test', which is no option of the samples moons"),
        ("digits", {"n": 10}, "n: got 10, which is no option of the images digits"),
        ("u1", {"size": 3}, "size: got 3, which is no option of the density u1"),
    ):
        with pytest.raises(ValueError, match=message):
            data.load(name, **options)


def test_parts_at_random():
    whole = data.Dataset("numbers", torch.arange(10.0).view(10, 1), torch.arange(10), scale=2.0)
    first, rest = whole.random_split(0.7)
    assert (len(first), len(rest)) == (7, 3)
    assert sorted(torch.cat([first.x, rest.x]).flatten().tolist()) == list(range(10))
    for part in (first, rest):
        assert torch.equal(part.x.flatten().long(), part.y)
        assert part.scale == 2
    assert torch.equal(whole.random_split(0.7)[0].x, first.x)
    assert not torch.equal(whole.random_split(0.7, seed=1)[0].x, first.x)
    assert [len(part) for part in whole.random_split(0.999)] == [9, 1]
    for fraction in (0.0, 1.0, -1, math.nan):
        with pytest.raises(ValueError, match="fraction: got"):
            whole.random_split(fraction)


@pytest.mark.parametrize("name", data.SAMPLES)
def test_samples_in_the_plane(name):
    first, again, other = (data.load(name, n=5000, seed=seed).x for seed in (0, 0, 1))
    assert first.shape == (5000, 2)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.abs().max() < 4
    assert first.mean(0).abs().max() < 0.1
    assert 0.5 < first.std(0).min() <= first.std(0).max() < 1.5


def test_checkerboard_leaves_half_of_the_squares_empty():
    x = data.load("checkerboard", n=20000).x
    column, row = (x + 2).floor().long().T
    counts = torch.bincount(4 * row + column, minlength=16).view(4, 4)
    squares = torch.arange(4)[:, None] + torch.arange(4)
    assert (counts[squares % 2 == 1] == 0).all()
    assert (counts[squares % 2 == 0] > 2000).all()


def by_hand(name, z1, z2):
    """U of notes and paper, in plain numbers."""
    w1 = math.sin(2 * math.pi * z1 / 4)
    w2 = 3 * math.exp(-0.5 * ((z1 - 1) / 0.6) ** 2)
    w3 = 3 / (1 + math.exp(-(z1 - 1) / 0.3))
    if name == "u1":
        ring = 0.5 * ((math.hypot(z1, z2) - 2) / 0.4) ** 2
        return ring - math.log(math.exp(-0.5 * ((z1 - 2) / 0.6) ** 2) + math.exp(-0.5 * ((z1 + 2) / 0.6) ** 2))
    if name == "u2":
        return 0.5 * ((z2 - w1) / 0.4) ** 2
    if name == "u3":
        return -math.log(math.exp(-0.5 * ((z2 - w1) / 0.35) ** 2) + math.exp(-0.5 * ((z2 - w1 + w2) / 0.35) ** 2))
    return -math.log(math.exp(-0.5 * ((z2 - w1) / 0.4) ** 2) + math.exp(-0.5 * ((z2 - w1 + w3) / 0.35) ** 2))


@pytest.mark.parametrize("name", data.DENSITIES)
def test_densities_are_the_formulas(name):
    density = data.load(name)
    for z1, z2 in [(0.0, 0.0), (1.3, -0.7), (-2.1, 1.0), (2.5, 0.2), (-0.4, 1.9)]:
        z = torch.tensor([[z1, z2]], dtype=torch.float64)
        assert density.energy(z).item() == pytest.approx(by_hand(name, z1, z2), rel=1e-12, abs=1e-12)
        assert density.log_prob(z).item() == pytest.approx(-by_hand(name, z1, z2), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", data.DENSITIES)
def test_densities_are_finite_and_smooth_far_out(name):
    z = torch.tensor([[100.0, -50.0], [0.0, 0.0], [-6.0, 3.0], [4.0, 0.0]], requires_grad=True)
    log_prob = data.load(name).log_prob(z)
    (grad,) = torch.autograd.grad(log_prob.sum(), z)
    assert log_prob.isfinite().all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", data.DENSITIES)
def test_normalisers(name):
    density = data.load(name)
    x = torch.linspace(-7, 7, 701, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(x, x, indexing="ij"), -1)
    total = torch.logsumexp(density.log_prob(grid).flatten(), 0).item() + 2 * math.log(14 / 700)
    assert density.log_normalizer == pytest.approx(total, abs=1e-3)
    if name == "u2":  # 8 wide, plus the two walls, times a Gaussian in z2
        want = math.log((8 + math.sqrt(2 * math.pi) * 0.1) * math.sqrt(2 * math.pi) * 0.4)
        assert density.log_normalizer == pytest.approx(want, abs=1e-6)


def test_only_the_unbounded_densities_have_a_wall():
    z = torch.tensor([[4.5, 0.0]])
    for name in data.DENSITIES:
        density = data.load(name)
        wall = (-density.energy(z) - density.log_prob(z)).item()
        assert wall == pytest.approx(0.0 if name == "u1" else 12.5, rel=1e-5)
