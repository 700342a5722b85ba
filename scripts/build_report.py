#!/usr/bin/env python3
"""Seconds and bytes of every op: what it costs to compile, what it adds to the extension, how long its tests take.

    python scripts/build_report.py [--build build/dev] [--junit FILE.xml]

Reads the log and the objects of a build by ninja, and the report of a test run (`pytest --junit-xml FILE.xml`). An
object that a compiler cache had counts as the moment it took to fetch it.
"""

import argparse
import collections
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("binding", "baseline", "avx2", "avx512", "simt", "cuda")
OBJECT = re.compile(r"CMakeFiles/(?:genfast_)?(?P<backend>\w+)\.dir/.*?(?P<stem>\w+)\.(?:cpp|cu)\.o$")
SHARED = "(shared)"

Costs = dict[tuple[str, str], float]


def ops() -> list[str]:
    """The folders of csrc/ops."""
    return sorted(p.name for p in (ROOT / "csrc" / "ops").iterdir() if p.is_dir())


def place(output: str) -> tuple[str, str] | None:
    """The kernel file, as a row of the table, and the backend that an object is of; None of what is no object."""
    found = OBJECT.search(output)
    if found is None:
        return None
    backend = "binding" if found["backend"] == "_C" else found["backend"]
    stem = re.sub(r"_(cpu|cuda|args)$", "", found["stem"])
    return (stem if any(stem.startswith(op) for op in ops()) else SHARED), backend


def objects(build: Path) -> set[str]:
    """The objects of the build as it is configured; others may lie about."""
    return set(re.findall(r"^build (CMakeFiles/\S+\.o):", (build / "build.ninja").read_text(), re.MULTILINE))


def seconds(build: Path) -> Costs:
    """Of the last compilation of each object."""
    last = {}
    for line in (build / ".ninja_log").read_text().splitlines()[1:]:
        start, end, _, output, _ = line.split("\t")
        last[output] = (int(end) - int(start)) / 1000
    return add({output: s for output, s in last.items() if output in objects(build)})


def text_bytes(build: Path) -> Costs:
    """Machine code and constants of each object."""
    files = [str(build / o) for o in objects(build) if (build / o).is_file()]
    if not files or shutil.which("size") is None:
        return {}
    lines = subprocess.run(["size", *files], capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    return add({line.split()[5]: int(line.split()[0]) for line in lines})


def add(by_output: dict[str, float]) -> Costs:
    """Sums over the objects of a row and backend."""
    sums: Costs = collections.defaultdict(float)
    for output, cost in by_output.items():
        at = place(output)
        if at is not None:
            sums[at] += cost
    return sums


def test_seconds(junit: Path) -> dict[str, float]:
    """Of the tests of each op, by its test files."""
    sums: dict[str, float] = collections.defaultdict(float)
    for case in ET.parse(junit).iter("testcase"):
        found = re.match(r"tests\.ops\.test_(\w+)", case.get("classname", ""))
        known = [op for op in ops() if found and found[1].startswith(op)]
        sums[max(known, key=len, default="(others)")] += float(case.get("time", 0))
    return sums


def table(title: str, costs: Costs, form: str) -> str:
    """A row for each kernel file, a column for each backend that was built, and the sums."""
    backends = [b for b in BACKENDS if any(at[1] == b for at in costs)]
    rows = sorted({at[0] for at in costs}, key=lambda row: (row == SHARED, row))
    lines = [f"{title:<22}" + "".join(f"{b:>10}" for b in (*backends, "sum"))]
    for row in [*rows, "sum"]:
        cells = [sum(c for at, c in costs.items() if at[1] == b and row in (at[0], "sum")) for b in backends]
        lines.append(f"{row:<22}" + "".join(f"{form.format(c):>10}" for c in (*cells, sum(cells))))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Prints the tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", type=Path, default=ROOT / "build" / "dev", help="the folder of the build (build/dev)")
    p.add_argument("--junit", type=Path, metavar="FILE", help="pytest's report in JUnit's format")
    args = p.parse_args(argv)
    if not (args.build / ".ninja_log").is_file():
        print(f"build_report: no build by ninja in {args.build}; run scripts/dev_build.sh", file=sys.stderr)
        return 2
    print(table("seconds to compile", seconds(args.build), "{:.1f}"))
    print()
    print(table("text in KB", {at: b / 1000 for at, b in text_bytes(args.build).items()}, "{:.0f}"))
    if args.junit is not None:
        print(f"\n{'seconds of tests':<22}")
        for name, s in sorted(test_seconds(args.junit).items()):
            print(f"{name:<22}{s:>10.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
