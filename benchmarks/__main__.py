"""Command line of the benchmark suite: `python -m benchmarks [NAME ...]`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from genfast import _native

from . import machine, plots, report
from .journal import Journal
from .runner import LOST, USAGE, Limits, available, empty_compile_cache, run, survive
from .timing import Options, Result

MEASURED_WITH = ("device", "threads", "quick", "torch", "instruction_set")
"""What the results of one table have in common."""


def parser() -> argparse.ArgumentParser:
    """The arguments, shown by --help."""
    p = argparse.ArgumentParser(
        prog="genfast bench",
        description="Compares genfast with eager PyTorch, torch.compile and other libraries on this machine. "
        "Exits with 1 where outputs disagree or a case fails.",
        allow_abbrev=False,  # survive() hands these words on
    )
    p.add_argument("names", nargs="*", metavar="NAME", help=f"which to run (all): {', '.join(available())}")
    p.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    p.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of every contender (default 2)")
    p.add_argument("--quick", action="store_true", help="a second a case: for a first look, not for reporting")
    p.add_argument("--no-compile", action="store_true", help="leave out torch.compile, whose first call takes minutes")
    p.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of JSON, CSV and plot (runs/bench)")
    p.add_argument("--markdown", type=Path, nargs="+", default=[], metavar="FILE", help="documents to put the table in")
    p.add_argument("--load", type=Path, metavar="FILE", help="report these results, .json or .jsonl, measure nothing")
    p.add_argument("--resume", action="store_true", help="go on with the run whose .jsonl lies in --out")
    p.add_argument("--survive", action="store_true", help="go on behind a case that ends the process")
    p.add_argument("--case-limit", type=float, default=0, metavar="S", help="end the process where a case takes longer")
    p.add_argument("--time-limit", type=float, default=0, metavar="S", help="begin no case later than this")
    p.add_argument("--seed", type=int, default=0, help="of the data")
    return p


def checked(p: argparse.ArgumentParser, args: argparse.Namespace) -> Options:
    """The options that were asked for; leaves with a message where they make no sense."""
    for name in args.names:
        if name not in available():
            p.error(f"no benchmark is called {name!r}; there are {', '.join(available())}")
    if args.threads < 1:
        p.error(f"--threads must be at least 1, got {args.threads}")
    try:
        device = torch.device(args.device)
    except RuntimeError:
        p.error(f"--device must be cpu, cuda or cuda:N, got {args.device!r}")
    if device.type not in {"cpu", "cuda"}:
        p.error(f"--device must be cpu, cuda or cuda:N, got {args.device!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        p.error("--device cuda: this torch sees no GPU")
    try:
        _native.load()
    except _native.NativeError as error:
        p.error(str(error))
    return Options(device, args.threads, args.quick, not args.no_compile, args.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    p = parser()
    args = p.parse_args(argv)
    code: int | None = None
    if args.load is not None:
        path = args.load
        try:
            results, state = report.load(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            p.error(f"--load: cannot read results from {path}: {error}")
        for result in results:
            print(report.format_case(result))
    else:
        options = checked(p, args)
        path = args.out / f"{options.device.type}.jsonl"
        limits = Limits(args.time_limit, args.case_limit)
        try:
            journal = Journal(path, "resume" if args.resume else "new")
        except (OSError, ValueError) as error:
            p.error(f"--out: cannot keep results in {path}: {error}")
        if args.survive:
            code, over = survive(path, limits)
            if over or code == USAGE:
                return code
        else:
            torch.set_num_threads(options.threads)
            state = introduced(options)
            for key in MEASURED_WITH:
                before = journal.state.get(key)
                if journal.state and before != state[key]:
                    p.error(f"--resume: {path} was measured with {key}={before}, now it is {state[key]}")
            journal.machine(state)
            with empty_compile_cache():
                if not run(args.names or available(), options, journal, limits):
                    return LOST
            journal.finish()
        results, state = report.load(path)
    if path.suffix == ".jsonl":
        print("written:", *written(results, state, path))
    print(report.format_summary(results))
    try:
        for document in args.markdown:
            report.update_document(document, report.markdown(results, state))
    except (OSError, ValueError) as error:
        p.error(f"--markdown: {error}")
    return code or (0 if all(result.agrees for result in results) else 1)


def introduced(options: Options) -> dict[str, Any]:
    """The state of the machine, printed."""
    state = machine.state(options)
    print("  ".join(f"{key}={value}" for key, value in state.items() if value is not None))
    if note := machine.warning(state):
        print(note, file=sys.stderr)
    print(flush=True)
    return state


def written(results: Sequence[Result], state: dict[str, Any], journal: Path) -> list[Path]:
    """The tables and the picture beside a journal, made anew."""
    files = report.save(results, state, journal.parent, journal.stem)
    picture = journal.with_suffix(".png")
    return [*files, picture] if plots.draw(results, state, picture) else files


if __name__ == "__main__":
    sys.exit(main())
