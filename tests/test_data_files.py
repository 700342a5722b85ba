"""Data of one's own: arrays, .npy, .npz and .csv files, folders of images; whole ones and broken ones."""

import pickle
import warnings

import numpy as np
import pytest
import torch

from genfast import data


def refused(source, *words, **options):
    with pytest.raises(data.DataError) as error:
        data.load(source, **options)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def save(path, array, **options):
    np.save(path, array, **options)
    return path


# -- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "tensor", "file"])
@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((5, 3), None),
        ((5, 4, 6), (4, 6)),
        ((5, 1, 4, 6), (4, 6)),
        ((5, 3, 4, 6), (3, 4, 6)),
        ((5, 4, 6, 3), (3, 4, 6)),
        ((5, 4, 6, 1), (4, 6)),
    ],
)
def test_shapes(tmp_path, form, shape, kept):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    source = {"array": array, "tensor": torch.from_numpy(array), "file": save(tmp_path / "a.npy", array)}[form]
    dataset = data.load(source)
    assert dataset.shape == kept
    rows = np.moveaxis(array, 3, 1) if shape[1:] == (4, 6, 3) else array
    assert torch.equal(dataset.x, torch.from_numpy(rows.reshape(5, -1)))
    assert dataset.x.is_contiguous()
    assert dataset.scale == 1


@pytest.mark.parametrize("kind", "float16 float64 >f4 int8 int64 uint16 uint32 bool".split())
def test_types_of_numbers(kind):
    array = np.arange(12).reshape(4, 3).astype(kind)
    dataset = data.load(array)
    assert dataset.x.dtype == torch.float32
    assert dataset.x.tolist() == array.astype(float).tolist()


def test_tensors_are_copied_and_lose_their_graph():
    source = torch.zeros(3, 2, requires_grad=True)
    x = data.load(source).x
    with torch.no_grad():
        source.add_(1)
    assert not x.requires_grad
    assert not x.any()
    array = np.zeros((3, 2), np.float32)
    x = data.load(array).x
    array += 1
    assert not x.any()
    assert data.load(torch.zeros(3, 2, dtype=torch.bfloat16)).x.dtype == torch.float32


def test_images_of_bytes_are_scaled_to_one():
    bytes_ = np.array([[[0, 255], [51, 1]]], np.uint8)
    assert data.load(bytes_).x.tolist() == [pytest.approx([0, 1, 0.2, 1 / 255])]
    assert data.load(bytes_).scale == 255
    assert data.load(torch.from_numpy(bytes_)).scale == 255
    for kept in (bytes_.reshape(1, 4), bytes_.astype(np.int64), bytes_ > 0, (bytes_ > 50).astype(np.uint8)):
        assert data.load(kept).x.max() == kept.max()
        assert data.load(kept).scale == 1
    assert data.load(bytes_.reshape(1, 4), scale=255).x.max() == 1
    with pytest.raises(ValueError, match="scale: got 0"):
        data.load(bytes_, scale=0)


def test_dark_bytes_are_remarked_on():
    dark = np.full((3, 4, 4), 16, np.uint8)
    with pytest.warns(UserWarning, match="the brightest pixel is 16 of 255; .* scale=16"):
        data.load(dark)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.load(dark, scale=16).x.min() == 1


def test_what_is_loaded_comes_back():
    for name in ("moons", "u1"):
        loaded = data.load(name)
        assert data.load(loaded) is loaded


BAD_ARRAYS = {
    "nan": (np.array([[0.0, np.nan], [np.inf, 1.0]]), ["2 values that are NaN or infinite", "row 0, column 1"]),
    "too large": (np.array([[0.0, 1e300]]), ["holds 1e+300", "within float32"]),
    "one dimension": (np.zeros(5), ["shape [5], want [N, D]"]),
    "five dimensions": (np.zeros((1, 2, 3, 4, 5)), ["shape [1, 2, 3, 4, 5]"]),
    "channels": (np.zeros((2, 7, 4, 5)), ["shape [2, 7, 4, 5]", "1 or 3 channels"]),
    "no rows": (np.zeros((0, 5)), ["shape [0, 5]"]),
    "no columns": (np.zeros((5, 0)), ["shape [5, 0]"]),
    "scalar": (np.array(1.0), ["shape []"]),
    "text": (np.array([["a", "b"]]), ["holds <U1, want numbers"]),
    "complex": (np.array([[1j]]), ["holds complex128, want numbers"]),
    "records": (np.zeros((2, 2), [("a", "f4")]), ["want numbers"]),
    "dates": (np.zeros((2, 2), "M8[s]"), ["want numbers"]),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(tmp_path, name):
    array, words = BAD_ARRAYS[name]
    refused(array, *words)
    refused(save(tmp_path / "a.npy", array), "a.npy", *words)
    np.savez(tmp_path / "a.npz", array)
    refused(tmp_path / "a.npz", "a.npz:arr_0", *words)
    if array.dtype.kind in "fc":
        refused(torch.from_numpy(array), *words)


def test_bad_objects():
    refused(np.array([[{}, 1]], dtype=object), "holds Python objects, want numbers")
    refused(torch.zeros(3, 3).to_sparse(), "torch.sparse_coo", "want a dense one")
    refused(torch.zeros(3, 3, device="meta"), "on meta")
    for source in ([[0.0, 1.0]], 3, None):
        with pytest.raises(TypeError, match=r"data: got .*, want a name, a path, a tensor or an array"):
            data.load(source)
    with pytest.raises(ValueError, match="split: got 'test', which is no option of a tensor or array; divide it"):
        data.load(np.zeros((3, 3)), split="test")


# -- .npy and .npz ----------------------------------------------------------------------------------------------------


class Trap:
    """Creates a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_nothing_is_unpickled(tmp_path):
    sprung = tmp_path / "sprung"
    objects = np.array([[Trap(sprung)]], dtype=object)
    save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", objects)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap(sprung)))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap(sprung)))
    for name in ("a.npy", "a.npz"):
        refused(tmp_path / name, name, "cannot read", "pickled Python objects, which are never opened")
    for name in ("b.npy", "b.npz"):
        refused(tmp_path / name, name, "cannot read", "a pickle, which is never opened")
    assert not sprung.exists()


def test_arrays_of_an_npz(tmp_path):
    path = tmp_path / "several.npz"
    np.savez_compressed(path, train=np.zeros((4, 2)), test=np.ones((3, 2)))
    assert data.load(f"{path}:train").x.shape == (4, 2)
    assert data.load(f"{path}:test").x.shape == (3, 2)
    assert data.load(f"{path}:test").name == f"{path}:test"
    refused(path, "several arrays, there are train, test", f"{path}:train")
    refused(f"{path}:valid", "no array 'valid', there are train, test")
    np.savez(tmp_path / "one.npz", x=np.zeros((4, 2)))
    assert data.load(tmp_path / "one.npz").name.endswith("one.npz:x")
    np.savez(tmp_path / "none.npz")
    refused(tmp_path / "none.npz", "none.npz holds no array")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_broken_arrays(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    {"npy": np.save, "npz": np.savez}[suffix](path, np.zeros((30, 20)))
    whole = path.read_bytes()
    for content, word in ((b"", "empty"), (b"hello", "something else"), (whole[: len(whole) // 2], "cannot read")):
        path.write_bytes(content)
        refused(path, f"a.{suffix}", word)
    path.write_bytes(whole)
    other = path.rename(tmp_path / f"b.{'npz' if suffix == 'npy' else 'npy'}")
    refused(other, "cannot read", ".npy?" if suffix == "npy" else ".npz?")


def test_a_zip_of_other_things(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("readme.txt", "hello")
    refused(tmp_path / "a.npz", "readme.txt is not an array")


def test_a_header_that_promises_too_much(tmp_path):
    path = tmp_path / "a.npy"
    for shape in (b"(99999999999, 99999999)", b"(30000, 20000)", b"(30, ", b"-3", b"(-1, 4)", b"('a', 'b')"):
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': " + shape + b", }\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        refused(path, "cannot read", "broken")


# -- .csv -------------------------------------------------------------------------------------------------------------


def text(tmp_path, content, name="a.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "1,2.5,-3\n4,5e-1,.5\n",
        "1;2.5;-3\n4;5e-1;.5",
        "1\t2.5\t-3\r\n4\t5e-1\t.5\r\n",
        "1 2.5 -3\n4 5e-1 .5\n",
        "  1    2.5  -3\n  4   5e-1   .5\n",
        "1 | 2.5 | -3\n4 | 5e-1 | .5\n",
        "1, 2.5, -3\n\n4, 5e-1, .5\n\n",
        "a,b,c\n1,2.5,-3\n4,5e-1,.5\n",
        '"a, long","b ""x""","c\nd"\n1,"2.5",-3\n4,5e-1,.5\n',
        "first name;b;c\n1;2.5;-3\n4;5e-1;.5\n",
        "\n\na b c\n1 2.5 -3\n4 5e-1 .5\n",
        b"\xef\xbb\xbfa,b,c\r\n1,2.5,-3\r\n4,5e-1,.5\r\n",
        b"\xef\xbb\xbf1,2.5,-3\r\n4,5e-1,.5\r\n",
        "Größe,b,c\n1,2.5,-3\n4,5e-1,.5\n",
    ],
)
def test_tables(tmp_path, content):
    dataset = data.load(text(tmp_path, content))
    assert dataset.x.tolist() == [[1, 2.5, -3], [4, 0.5, 0.5]]
    assert (dataset.shape, dataset.y) == (None, None)


def test_one_column_and_one_row(tmp_path):
    assert data.load(text(tmp_path, "x\n1\n2\n")).x.tolist() == [[1], [2]]
    assert data.load(text(tmp_path, "1\n2\n")).x.tolist() == [[1], [2]]
    assert data.load(text(tmp_path, "1,2\n")).x.tolist() == [[1, 2]]
    assert data.load(text(tmp_path, "1\t2\n", "a.tsv"), scale=2).x.tolist() == [[0.5, 1]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["is empty"]),
        ("\n \n", ["is empty"]),
        ("a,b\n", ["a line of names and no numbers"]),
        ("1,2\n3,x\n", ["line 2, column 2: got 'x', want a finite number"]),
        ("a,b\n\n1,2\n3,\n", ["line 4, column 2 (b): got nothing"]),
        ("a,b\n1,2\n,\n", ["line 3, column 1 (a): got nothing"]),
        ("a,b\n1,2\n3,nan\n", ["line 3, column 2 (b): got 'nan'"]),
        ("1,2\n-inf,3\n", ["line 2, column 1: got '-inf'"]),
        ("1,2\n1e999,3\n", ["line 2, column 1: got '1e999', want a finite number"]),
        ("1,2\n3,1e300\n", ["holds 1e+300"]),
        ("1,2\n3,4,5\n", ["line 2 has 3 columns, line 1 has 2"]),
        ("a,b\n1,2\n3\n", ["line 3 has 1 columns, line 1 has 2"]),
        ("1,x\n2,3\n", ["line 1, column 2: got 'x'"]),
        ("a;b\n1,5;2\n", ["line 2, column 1 (a): got '1,5'", "with a decimal point"]),
        ("1_0,2\n3,4\n", ["line 1, column 1: got '1_0'"]),
        ("١,2\n3,4\n", ["line 1, column 1: got '١'"]),
        (",0,1\n0,5,6\n1,7,8\n", ["line 1, column 1 has no name", "index=False"]),
        (",a,b\n0,5,6\n1,7,8\n", ["line 1, column 1 has no name", "index=False"]),
        ("0,1,2\n5,6,7\n", ["line 1 is 0, 1, 2, ...: names or numbers?"]),
        ("Lorem ipsum dolor\nsit amet consectetur\n", ["line 2, column 1 (Lorem): got 'sit'"]),
        ("a,b\n1,2\n".encode("utf-16"), ["not UTF-8 text"]),
        (b"1,2\n3,\x00\n", ["line"]),
        (b"\x89PNG\r\n\x1a\n\xff", ["not UTF-8 text"]),
        ("1,2\n3,4 # note\n", ["line 2, column 2: got '4 # note'"]),
        ('1,2\n"3,4\n', ["line"]),
    ],
)
def test_broken_tables(tmp_path, content, words):
    refused(text(tmp_path, content), "a.csv", *words)


def test_the_first_line_on_request(tmp_path):
    numbered = text(tmp_path, "0,1,2\n5,6,7\n")
    assert data.load(numbered, header=False).x.tolist() == [[0, 1, 2], [5, 6, 7]]
    assert data.load(numbered, header=True).x.tolist() == [[5, 6, 7]]
    assert data.load(text(tmp_path, ",a\n0,5\n"), header=True).x.tolist() == [[0, 5]]
    assert data.load(text(tmp_path, "0,1\n1,0\n")).x.tolist() == [[0, 1], [1, 0]]


# -- folders of images ------------------------------------------------------------------------------------------------


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image")


def picture(path, array, **options):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def bytes_of(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_grey_images(tmp_path, pillow):
    for i, name in enumerate(("b.png", "a.PNG", "c.bmp")):
        picture(tmp_path / name, bytes_of(5, 7, seed=i))
    for name in ("notes.txt", ".hidden.png", "Thumbs.db"):
        (tmp_path / name).write_text("no image")
    dataset = data.load(tmp_path)
    want = np.stack([bytes_of(5, 7, seed=i) for i in (1, 0, 2)]).reshape(3, -1)
    assert torch.equal(dataset.x, torch.from_numpy(want.astype(np.float32) / 255))
    assert (dataset.shape, dataset.y, dataset.classes, dataset.scale) == ((5, 7), None, None, 255)
    assert data.load(tmp_path, grey=False).shape == (3, 5, 7)


def test_colour_images(tmp_path, pillow):
    picture(tmp_path / "a.png", bytes_of(5, 7, 3))
    picture(tmp_path / "b.png", bytes_of(5, 7))
    dataset = data.load(str(tmp_path))
    assert dataset.shape == (3, 5, 7)
    first, second = dataset.x.view(2, 3, 5, 7).mul(255).round().byte()
    assert torch.equal(first, torch.from_numpy(bytes_of(5, 7, 3)).movedim(2, 0))
    assert torch.equal(second, torch.from_numpy(bytes_of(5, 7)).expand(3, 5, 7))
    assert data.load(tmp_path, grey=True).shape == (5, 7)


def test_sub_folders_are_labels(tmp_path, pillow):
    for i, name in enumerate(("dog/1.png", "cat/2.png", "cat/1.png", "empty/x.txt")):
        path = tmp_path / name
        if path.suffix == ".png":
            picture(path, bytes_of(4, 4, seed=i))
        else:
            path.parent.mkdir()
            path.write_text("")
    dataset = data.load(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.y.tolist() == [0, 0, 1]
    assert torch.equal(dataset.x[2] * 255, torch.from_numpy(bytes_of(4, 4)).flatten().float())
    picture(tmp_path / "own.png", bytes_of(4, 4))
    refused(tmp_path, "images and also sub-folders of images (cat)")


def test_sizes_agree_or_are_asked_for(tmp_path, pillow):
    picture(tmp_path / "a.png", bytes_of(8, 8))
    picture(tmp_path / "b.png", np.full((4, 10), 200, np.uint8))
    refused(tmp_path, "b.png of 4 x 10 and a.png of 8 x 8", "size=(height, width)")
    dataset = data.load(tmp_path, size=(6, 5))
    assert dataset.shape == (6, 5)
    assert torch.allclose(dataset.x[1], torch.tensor(200 / 255))
    assert data.load(tmp_path, size=3).shape == (3, 3)
    for size, message in ((0, "size: got 0"), ((1, 2, 3), "want \\(height, width\\)"), ((4, 2.5), "size: got 2.5")):
        with pytest.raises(ValueError, match=message):
            data.load(tmp_path, size=size)


def test_the_middle_is_kept(tmp_path, pillow):
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = bytes_of(4, 4)
    picture(tmp_path / "a.png", wide)
    assert torch.equal(data.load(tmp_path, size=4).x * 255, torch.from_numpy(bytes_of(4, 4)).view(1, 16).float())


def test_kinds_of_pixels(tmp_path, pillow):
    picture(tmp_path / "bits" / "a.png", bytes_of(5, 7) > 99)
    assert torch.equal(data.load(tmp_path / "bits").x.view(5, 7) > 0, torch.from_numpy(bytes_of(5, 7) > 99))
    deep = np.array([[0, 13107, 65535]], np.uint16)
    picture(tmp_path / "deep" / "a.png", deep)
    assert data.load(tmp_path / "deep").x.tolist() == [pytest.approx([0, 0.2, 1])]
    assert data.load(tmp_path / "deep", size=(2, 6)).x.max() <= 1
    assert data.load(tmp_path / "deep", grey=False).shape == (3, 1, 3)
    clear = np.zeros((1, 2, 4), np.uint8)
    clear[0, 0, 3] = 255
    picture(tmp_path / "clear" / "a.png", clear)
    assert data.load(tmp_path / "clear").x.tolist() == [[0, 1] * 3]
    picture(tmp_path / "float" / "a.tiff", np.zeros((3, 3), np.float32))
    refused(tmp_path / "float", "a.tiff has pixels of mode F")


def test_cameras_held_upright(tmp_path, pillow):
    image = pillow.fromarray(bytes_of(4, 6))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    dataset = data.load(tmp_path)
    assert dataset.shape == (6, 4)
    assert torch.equal(dataset.x.view(6, 4) * 255, torch.from_numpy(np.rot90(bytes_of(4, 6), -1).copy()).float())


def test_broken_images(tmp_path, pillow):
    refused(tmp_path, "holds no images, nor do its sub-folders")
    picture(tmp_path / "a.png", bytes_of(40, 40))
    whole = (tmp_path / "a.png").read_bytes()
    for content, word in ((b"", "not an image"), (b"hello", "not an image"), (whole[:600], "broken")):
        (tmp_path / "a.png").write_bytes(content)
        refused(tmp_path, "cannot read", "a.png", word)
    frames = [pillow.fromarray(bytes_of(4, 4, seed=i)) for i in range(3)]
    (tmp_path / "a.png").unlink()
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    refused(tmp_path, "b.gif holds 3 pictures, want one")
    refused(tmp_path / "b.gif", "is one image, want the folder")


def test_without_pillow(tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "PIL":
            raise ModuleNotFoundError("No module named 'PIL'", name="PIL")
        return real(name, *args, **kwargs)

    import importlib

    real_module = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda name, *a: absent(name) if name.startswith("PIL") else real_module(name, *a)
    )
    with pytest.raises(ImportError, match=r"reading images needs pillow, .* pip install 'genfast\[train\]'"):
        data.load(tmp_path)


# -- paths ------------------------------------------------------------------------------------------------------------


def test_paths(tmp_path, monkeypatch):
    save(tmp_path / "a.npy", np.zeros((3, 2)))
    save(tmp_path / "A.NPY", np.zeros((4, 2)))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.load("~/a.npy").x.shape == (3, 2)
    monkeypatch.chdir(tmp_path)
    assert data.load("a.npy").name == "a.npy"
    for source in ("missing.npy", "missing.npz:x", "no/such", tmp_path / "missing.csv"):
        refused(source, "there is no file", str(source).removesuffix(":x"))
    (tmp_path / "a.pt").write_text("")
    refused("a.pt", "a.pt is not a .npy, .npz or .csv file or a folder of images")
    with pytest.raises(ValueError, match=r"header: got True, which is no option of the file a\.npy"):
        data.load("a.npy", header=True)


def test_names_come_before_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moons").mkdir()
    assert data.load("moons").x.shape == (10000, 2)
    refused("./moons", "holds no images")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    import pathlib

    save(tmp_path / "a.npy", np.zeros((3, 2)))

    def deny(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(pathlib.Path, "open", deny)
    refused(tmp_path / "a.npy", "cannot read", "Permission denied")
