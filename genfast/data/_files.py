"""Files of numbers: .npy, .npz and .csv, each checked before it is believed."""

import csv
import itertools
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from genfast.data._dataset import DataError, Dataset, from_array

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
SNIFFED_LINES = 20


def read_npy(path: Path, *, scale: float | None = None) -> Dataset:
    """The rows of a .npy file.

    Raises:
        DataError: it is no .npy file of finite numbers.
    """
    with path.open("rb") as file:
        magic = file.read(len(np.lib.format.MAGIC_PREFIX))
    if magic != np.lib.format.MAGIC_PREFIX:
        raise DataError(f"cannot read {path}: it is {_what(magic)}, not a .npy file")
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # readers of broken files raise what they please
        raise DataError(f"cannot read {path}: {_reason(error)}") from error
    return from_array(str(path), array, scale=scale)


def read_npz(path: Path, key: str | None, *, scale: float | None = None) -> Dataset:
    """The rows of one array of a .npz file: of `key`, or of the only one.

    Raises:
        DataError: it is no .npz file, has no such array, or has several and none is named.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            raise DataError(f"cannot read {path}: it is {_what(file.read(6))}, not a .npz file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            key = _choose(path, list(arrays.files), key)
            array = arrays[key]
    except DataError:
        raise
    except Exception as error:  # readers of broken files raise what they please
        raise DataError(f"cannot read {path}: {_reason(error)}") from error
    if not isinstance(array, np.ndarray):  # a member that is no .npy comes as bytes
        raise DataError(f"cannot read {path}: {key} is not an array")
    return from_array(f"{path}:{key}", array, scale=scale)


def _choose(path: Path, names: list[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if not names:
        raise DataError(f"{path} holds no array")
    if key is None or key not in names:
        asked = "several arrays" if key is None else f"no array {key!r}"
        raise DataError(f"{path} holds {asked}, there are {', '.join(names)}; name one, as in {path}:{names[0]}")
    return key


def _what(start: bytes) -> str:
    if not start:
        return "empty"
    if start.startswith(b"PK"):
        return "a zip file (.npz?)"
    if start.startswith(np.lib.format.MAGIC_PREFIX):
        return "a single array (.npy?)"
    return "a pickle, which is never opened," if start[0] == 0x80 else "something else"


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "allow_pickle" in text or "pickled" in text:
        return "it holds pickled Python objects, which are never opened, want numbers"
    return f"it is broken ({text})"


# -- csv --------------------------------------------------------------------------------------------------------------


def read_csv(path: Path, *, header: bool | None = None, scale: float | None = None) -> Dataset:
    """The rows of a text file of numbers; the delimiter is found out.

    Args:
        path: of the file.
        header: whether the first line holds names; by default it does where it holds no number.
        scale: to divide by.

    Raises:
        DataError: a field is no finite number, lines differ in length, or it is no text; names line and column.
    """
    delimiter = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter, skipped = _look(path, file, header)
            file.seek(0)
            text = itertools.islice(file, skipped, None)
            array = np.loadtxt(
                (line for line in text if line.strip()),
                *(np.float64, None, delimiter),
                quotechar=None if delimiter is None else '"',
                ndmin=2,
            )
            problem = "" if np.isfinite(array).all() else "it has values that are NaN or infinite"
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: it is not UTF-8 text") from error
    except DataError:
        raise
    except (ValueError, csv.Error) as error:
        problem = str(error).splitlines()[0]
    if problem:
        raise DataError(f"{path}: {_first_fault(path, delimiter, header) or problem}")
    return from_array(str(path), array, scale=scale)


def _look(path: Path, file: TextIO, header: bool | None) -> tuple[str | None, int]:
    """The delimiter, and the number of lines before the numbers."""
    sample = list(itertools.islice((line for line in file if line.strip()), SNIFFED_LINES))
    if not sample:
        raise DataError(f"{path} is empty, want lines of numbers")
    delimiter = _delimiter(sample)
    file.seek(0)
    lines = _fields(file, delimiter)
    first = next(lines, (0, [""]))
    if not _is_header(path, *first, header):
        return delimiter, 0
    if next(lines, None) is None:
        raise DataError(f"{path} holds a line of names and no numbers")
    return delimiter, first[0]


def _fields(file: Iterable[str], delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line that is not blank."""
    if delimiter is None:
        rows = ((i, line.split()) for i, line in enumerate(file, 1))
    else:
        reader = csv.reader(file, delimiter=delimiter)
        rows = ((reader.line_num, [field.strip() for field in row]) for row in reader)
    return ((i, row) for i, row in rows if len(row) > 1 or any(row))


def _delimiter(sample: list[str]) -> str | None:
    """What stands between the fields: a tab, ; , | or blanks (None); that with most lines of several numbers."""

    def score(delimiter: str | None) -> tuple[int, int]:
        rows = [row for _, row in _fields(sample, delimiter) if len(row) > 1]
        alike = Counter(map(len, rows)).most_common(1)
        return sum(all(map(_is_number, row)) for row in rows), alike[0][1] if alike else 0

    return max(("\t", ";", ",", "|", None), key=score)


def _is_number(field: str) -> bool:
    return bool(_NUMBER.fullmatch(field) or _NOT_FINITE.fullmatch(field))


def _is_header(path: Path, line: int, fields: list[str], header: bool | None) -> bool:
    """Whether the first line holds names; an error where that cannot be told, or where an index was written."""
    if header is not None:
        return header
    counted = [str(i) for i in range(len(fields))]
    if fields[0] == "" and len(fields) > 1 and (fields[1:] == counted[:-1] or not any(map(_is_number, fields))):
        raise DataError(
            f"{path}: line {line}, column 1 has no name, as the index that pandas writes; write it with index=False, "
            "or load with header=True"
        )
    if len(fields) > 2 and fields == counted:
        raise DataError(f"{path}: line {line} is 0, 1, 2, ...: names or numbers? Load with header=True or header=False")
    return not any(map(_is_number, fields))


def _first_fault(path: Path, delimiter: str | None, header: bool | None) -> str:
    """Where the first field stands that is no finite number, or the first line of another length; slow and exact."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        names: list[str] | None = None
        width = 0
        try:
            for line, fields in _fields(file, delimiter):
                if not width:
                    first, width = line, len(fields)
                    if _is_header(path, line, fields, header):
                        names = fields
                        continue
                for column, field in enumerate(fields[:width], 1):
                    if not _NUMBER.fullmatch(field) or not math.isfinite(float(field)):
                        name = f" ({names[column - 1]})" if names else ""
                        hint = " with a decimal point" if re.fullmatch(r"-?\d+,\d+", field) else ""
                        found = repr(field[:40]) if field else "nothing"
                        return f"line {line}, column {column}{name}: got {found}, want a finite number{hint}"
                if len(fields) != width:
                    return f"line {line} has {len(fields)} columns, line {first} has {width}"
        except csv.Error as error:
            return f"{error}"
    return ""
