#!/usr/bin/env python3
"""Registers, shared memory, stack and spills of every CUDA kernel, as ptxas reports them.

    python scripts/cuda_report.py [--arch 90] [--out FILE.json] [--log FILE] [SOURCE.cu ...]

Compiles the kernels for one architecture (device code only), or reads the log of a build. Exits with 1 where a kernel
spills registers to memory and is not listed below with a reason. A GPU is not needed.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Kernels that may spill: a part of the name as the table prints it -> why that is right.
ALLOWED_SPILLS: dict[str, str] = {}

PROPERTIES = re.compile(
    r"Compiling entry function '(?P<symbol>\S+)' for '(?P<arch>\w+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclasses.dataclass
class Kernel:
    """What one kernel takes on one architecture."""

    source: str
    name: str
    arch: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    def allowed(self) -> str | None:
        """Why this kernel may spill."""
        return next((why for part, why in ALLOWED_SPILLS.items() if part in self.name), None)


def demangle(symbols: list[str]) -> list[str]:
    """Names as written in the source, as far as a demangler is installed."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not symbols:
        return symbols
    done = subprocess.run([tool], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return [shorten(line) for line in done.stdout.splitlines()]


def shorten(name: str) -> str:
    """A demangled kernel without namespaces, return type and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|\bgf::|\bcuda::|\b_GLOBAL__N__\w+::", "", name)
    name = re.sub(r"^void ", "", name)
    depth = 0
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            name = name[:i]
            break
    return re.sub(r"\((?:int|unsigned int|bool|long)\)", "", name)


def parse(log: str, source: str) -> list[Kernel]:
    """The kernels of a ptxas log."""
    found = list(PROPERTIES.finditer(log))
    kernels = []
    for match, name in zip(found, demangle([m["symbol"] for m in found]), strict=True):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        kernels.append(
            Kernel(
                source,
                name,
                match["arch"],
                int(match["registers"]),
                int(shared[1]) if shared else 0,
                int(match["stack"]),
                int(match["stores"]),
                int(match["loads"]),
            )
        )
    return kernels


def compile_source(source: Path, arch: str, nvcc: str) -> list[Kernel]:
    """Compiles the device code of one file with the flags of CMakeLists.txt."""
    name = str(source.relative_to(ROOT)) if source.is_relative_to(ROOT) else str(source)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(nvcc, "-cubin", f"-arch=sm_{arch}", "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xptxas=-v"),
            *("-DGF_BACKEND=cuda", f"-I{ROOT / 'csrc'}", str(source), "-o", str(Path(folder) / "kernels.cubin")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"cuda_report: {name} does not compile:\n{done.stdout}{done.stderr}")
    return parse(done.stderr + done.stdout, name)


def table(kernels: list[Kernel]) -> str:
    """The report, a line a kernel."""
    lines = [f"{'registers':>9} {'shared':>7} {'stack':>6} {'spilled':>8}  {'arch':<7} kernel"]
    for k in kernels:
        spilled = k.spill_stores + k.spill_loads
        lines.append(f"{k.registers:>9} {k.shared:>7} {k.stack:>6} {spilled:>8}  {k.arch:<7} {k.name}")
    return "\n".join(lines)


def collect(args: argparse.Namespace) -> list[Kernel]:
    """The kernels of the log, or of the sources."""
    if args.log is not None:
        return parse(args.log.read_text(), str(args.log))
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if nvcc is None:
        raise SystemExit("cuda_report: no nvcc on the PATH (or in CUDACXX); install the CUDA toolkit")
    sources = [p.resolve() for p in args.sources] or sorted(ROOT.glob("csrc/ops/*/*_cuda.cu"))
    if not sources:
        raise SystemExit("cuda_report: no csrc/ops/*/*_cuda.cu")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        lists = pool.map(lambda source: compile_source(source, args.arch, nvcc), sources)
        return [kernel for kernels in lists for kernel in kernels]


def main(argv: list[str] | None = None) -> int:
    """Prints the report; 1 where a kernel spills without a reason."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("sources", nargs="*", type=Path, metavar="SOURCE", help="CUDA files (csrc/ops/*/*_cuda.cu)")
    p.add_argument("--arch", default="90", help="compute capability without the dot (90)")
    p.add_argument("--log", type=Path, help="read this output of a build instead of compiling")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON")
    args = p.parse_args(argv)
    kernels = collect(args)
    if not kernels:
        raise SystemExit("cuda_report: no kernel found (was -Xptxas=-v given?)")
    print(table(kernels))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps([dataclasses.asdict(k) for k in kernels], indent=1) + "\n")
    failed = False
    for kernel in kernels:
        if kernel.spill_stores + kernel.spill_loads == 0:
            continue
        why = kernel.allowed()
        failed = failed or why is None
        print(f"cuda_report: {kernel.name} ({kernel.source}) spills: {why or 'not listed in ALLOWED_SPILLS'}")
    for part in ALLOWED_SPILLS:
        if args.log is None and not args.sources and not any(part in k.name for k in kernels):
            failed = True
            print(f"cuda_report: ALLOWED_SPILLS lists {part!r}, which no kernel is called")
    stacks = [k for k in kernels if k.stack > 0]
    print(f"{len(kernels)} kernels, {len(stacks)} with a stack frame, {'spills found' if failed else 'no spills'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
