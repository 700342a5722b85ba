"""Whatever bytes a data file holds, `load` gives finite rows or one sentence; what numbers are written come back."""

import csv
import io
import warnings

import numpy as np
import pytest
import torch

from genfast import data

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as arrays  # noqa: E402

SETTINGS = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def tables(draw):
    """Numbers `[N, D]`, not one number a row, which has no delimiter, and not 0, 1, 2, ... in the first line."""
    shape = draw(st.tuples(st.integers(1, 8), st.integers(2, 5)))
    table = draw(arrays.arrays(np.float32, shape, elements=FLOAT32))
    hypothesis.assume(table[0].tolist() != list(range(shape[1])))
    return table


@SETTINGS
@given(
    table=tables(),
    delimiter=st.sampled_from("\t;,| "),
    names=st.none() | st.lists(st.sampled_from(["x", "a b", "label", "Größe", "p,q", "1st"]), min_size=5, max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from(["utf-8", "utf-8-sig"]),
    blank=st.sampled_from(["", "\n", "  \n"]),
)
def test_tables_come_back(tmp_path, table, delimiter, names, end, mark, blank):
    file = io.StringIO(newline="")
    file.write(blank)
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    if names is not None:
        writer.writerow([name.replace(" ", "") if delimiter == " " else name for name in names[: table.shape[1]]])
    writer.writerows([[repr(float(value)) for value in row] for row in table])
    path = tmp_path / "a.csv"
    path.write_bytes((file.getvalue() + blank).encode(mark))
    assert torch.equal(data.load(path).x, torch.from_numpy(table))


def loads_or_says(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = data.load(path)
        except data.DataError as error:
            sentence = str(error)
        else:
            sentence = ""
    if sentence:
        assert path.name in sentence
        assert "\n" not in sentence
        return
    assert loaded.x.dim() == 2
    assert loaded.x.numel() > 0
    assert loaded.x.isfinite().all()


def written(kind):
    file = io.BytesIO()
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    if kind == "npy":
        np.save(file, array)
    elif kind == "npz":
        np.savez(file, x=array)
    elif kind == "npz, packed":
        np.savez_compressed(file, x=array)
    else:
        image = pytest.importorskip("PIL.Image")
        image.fromarray(array.astype(np.uint8)).save(file, "jpeg" if kind == "jpg" else kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["npy", "npz", "npz, packed", "png", "jpg", "gif"])
@SETTINGS
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4), cut=st.integers(0, 10**6))
def test_broken_files(tmp_path, kind, changes, cut):
    content = bytearray(written(kind))
    for position, value in changes:
        content[position % len(content)] = value
    if cut % 3 == 0:
        del content[cut % len(content) :]
    suffix = kind.split(",")[0]
    if suffix in ("npy", "npz"):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(content)
    else:
        path = tmp_path / "images"
        path.mkdir(exist_ok=True)
        (path / f"a.{suffix}").write_bytes(content)
    loads_or_says(path)


@SETTINGS
@given(content=st.text(alphabet="0123456789.,;\t |eE+-naif\"'\n\r#_é\0", max_size=60) | st.binary(max_size=60))
def test_any_text(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    loads_or_says(path)
