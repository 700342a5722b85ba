"""Turns results into a table for the terminal, JSON, CSV, and markdown between two markers of a document."""

import csv
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .journal import Journal
from .timing import RAISED, Quartiles, Result, Row

__all__ = ["BEGIN", "END", "format_case", "format_summary", "load", "markdown", "save", "update_document"]

BEGIN = "<!-- benchmarks:begin (written by `make bench-table`) -->"
END = "<!-- benchmarks:end -->"

COLUMNS = ("contender", "first call", "time (quartiles)", "genfast is faster by", "goal", "saved bytes", "x floor")


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for limit, scale, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"


def size(nbytes: int) -> str:
    """A number of bytes with a unit."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def times(ratio: float) -> str:
    """A ratio as 12.3x."""
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.3g}x"


def _spread(quartiles: Quartiles, form: Callable[[float], str]) -> str:
    return f"{form(quartiles.median)} ({form(quartiles.low)} to {form(quartiles.high)})"


def _goal(row: Row) -> str:
    if row.target is None or row.speedup is None:
        return ""
    reached = row.speedup.median >= row.target
    return f"{times(row.target)} {'reached' if reached else 'MISSED'}"


def _saved(row: Row, ours: Row) -> str:
    if row.saved is None:
        return ""
    if row is ours or ours.saved is None:
        return size(row.saved)
    notes = [times(row.saved / ours.saved) if ours.saved else f"genfast {size(0)}"]
    if row.saved_target is not None:
        notes.append(f"goal {times(row.saved_target)} {'reached' if _saved_reached(row, ours) else 'MISSED'}")
    return f"{size(row.saved)} ({', '.join(notes)})"


def _saved_reached(row: Row, ours: Row) -> bool:
    return (
        row.saved is not None
        and ours.saved is not None
        and row.saved_target is not None
        and row.saved >= row.saved_target * ours.saved
    )


def _cells(result: Result, row: Row) -> list[str]:
    ours = result.rows[0]
    if row.seconds is None:
        return [row.name, duration(row.first_call), row.problem or "not timed", "", "", "", ""]
    return [
        row.name,
        duration(row.first_call),
        _spread(row.seconds, duration),
        "" if row.speedup is None else _spread(row.speedup, times),
        _goal(row),
        _saved(row, ours),
        "" if not result.floor else f"{row.seconds.median / result.floor:.1f}",
    ]


def format_case(result: Result) -> str:
    """One case as text, a line a contender."""
    if result.problem:
        return f"{result.op}: {result.label}\n  NOT MEASURED: {result.problem}\n"
    lines = [COLUMNS, *(_cells(result, row) for row in result.rows)]
    used = [i for i in range(len(COLUMNS)) if any(line[i] for line in lines[1:])]
    widths = {i: max(len(line[i]) for line in lines) for i in used}
    body = "\n".join("  " + "  ".join(line[i].ljust(widths[i]) for i in used).rstrip() for line in lines)
    floor = f", floor {duration(result.floor)} ({result.floor_kind})" if result.floor else ""
    rounds = f", {result.rounds} rounds" if result.rounds else ""
    return f"{result.op}: {result.label}{rounds}{floor}\n{body}\n"


def format_summary(results: Sequence[Result]) -> str:
    """How many goals were reached, and the cases where a baseline won or an output differed."""
    pairs = [(result, row) for result in results for row in result.rows[1:]]
    goals = [(result, row) for result, row in pairs if row.target is not None and row.speedup is not None]
    reached = sum(row.speedup.median >= row.target for _, row in goals if row.speedup and row.target)
    lines = [f"{len(results)} cases; speed goals reached: {reached} of {len(goals)}"]
    for result, row in goals:
        if row.speedup and row.target and row.speedup.median < row.target:
            ratio = f"{times(row.speedup.median)} of {times(row.target)}"
            lines.append(f"  missed: {result.op} {result.label}: {ratio} vs {row.name}")
    lines += [f"  NOT MEASURED: {r.op} {r.label}: {r.problem}" for r in results if r.problem]
    for result, row in pairs:
        if row.saved_target is not None and not _saved_reached(row, result.rows[0]):
            lines.append(f"  missed: {result.op} {result.label}: saved bytes vs {row.name}")
        if row.speedup and row.speedup.median < 1.0:
            lines.append(f"  slower: {result.op} {result.label}: {row.name} is faster than genfast")
        if row.problem:
            what = "FAILED" if row.problem.startswith(RAISED) else "DISAGREES"
            lines.append(f"  {what}: {result.op} {result.label}: {row.name}: {row.problem}")
    return "\n".join(lines)


def save(results: Sequence[Result], machine: dict[str, Any], folder: Path, stem: str) -> list[Path]:
    """Writes `stem`.json and `stem`.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    json_path, csv_path = folder / f"{stem}.json", folder / f"{stem}.csv"
    document = {"machine": machine, "results": [dataclasses.asdict(result) for result in results]}
    json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with csv_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "op",
                "case",
                "contender",
                "first_call_s",
                "median_s",
                "low_s",
                "high_s",
                "speedup",
                "speedup_low",
                "speedup_high",
                "goal",
                "saved_bytes",
                "floor_s",
                "problem",
            ]
        )
        for result in results:
            for row in result.rows:
                t, r = row.seconds, row.speedup
                writer.writerow(
                    [result.op, result.label, row.name, row.first_call]
                    + ([t.median, t.low, t.high] if t else ["", "", ""])
                    + ([r.median, r.low, r.high] if r else ["", "", ""])
                    + [row.target, row.saved, result.floor, row.problem]
                )
            if result.problem:
                writer.writerow([result.op, result.label, *[""] * 11, result.problem])
    return [json_path, csv_path]


def load(path: Path) -> tuple[list[Result], dict[str, Any]]:
    """Reads what `save` wrote as JSON, or the journal of a run, finished or not.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is a journal that holds no run, or something else.
    """
    if path.suffix == ".jsonl":
        journal = Journal(path, "read")
        if not journal.state:
            raise ValueError("no run has begun")
        return journal.results(), journal.state
    document = json.loads(path.read_text(encoding="utf-8"))
    return [Result.of(result) for result in document["results"]], document["machine"]


def markdown(results: Sequence[Result], machine: dict[str, Any]) -> str:
    """The table of the documents: a line for each contender that genfast is compared with."""
    lines = [
        f"Measured {machine['date'][:10]} on {machine['gpu'] or machine['processor']}, {machine['threads']} threads, "
        f"torch {machine['torch']}"
        + (f", instruction set {machine['instruction_set']}" if machine["instruction_set"] else "")
        + ". Medians of interleaved rounds; in brackets the quartiles.",
        "",
        "| work | genfast | against | its time | its first call | genfast faster by | goal | saved bytes | x floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if not result.rows or result.rows[0].seconds is None:
            continue
        ours = result.rows[0]
        floor = f"{ours.seconds.median / result.floor:.1f}" if result.floor else ""
        for row in result.rows[1:]:
            if row.seconds is None or row.speedup is None:
                continue
            cells = [
                f"`{result.op}` {result.label}",
                duration(ours.seconds.median),
                row.name,
                duration(row.seconds.median),
                duration(row.first_call),
                _spread(row.speedup, times),
                _goal(row),
                _saved(row, ours),
                floor,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def update_document(path: Path, table: str) -> None:
    """Replaces what stands between the markers of a document.

    Raises:
        ValueError: the markers are missing.
    """
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        msg = f"{path} has no line {BEGIN!r} followed by {END!r}"
        raise ValueError(msg)
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    path.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}", encoding="utf-8")
