"""Command line of the benchmark suite: `python -m benchmarks [NAME ...]`."""

import argparse
import contextlib
import importlib
import os
import pkgutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from genfast import _native

from . import machine, plots, report
from .timing import Options, Result, measure


def available() -> list[str]:
    """Names of the benchmarks: the files bench_<name>.py beside this one."""
    folder = str(Path(__file__).parent)
    return sorted(m.name.removeprefix("bench_") for m in pkgutil.iter_modules([folder]) if m.name.startswith("bench_"))


def parser() -> argparse.ArgumentParser:
    """The arguments, shown by --help."""
    p = argparse.ArgumentParser(
        prog="genfast bench",
        description="Compares genfast with eager PyTorch, torch.compile and other libraries on this machine. "
        "Exits with 1 where outputs disagree.",
    )
    p.add_argument("names", nargs="*", metavar="NAME", help=f"which to run (all): {', '.join(available())}")
    p.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    p.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of every contender (default 2)")
    p.add_argument("--quick", action="store_true", help="a second a case: for a first look, not for reporting")
    p.add_argument("--no-compile", action="store_true", help="leave out torch.compile, whose first call takes minutes")
    p.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of JSON, CSV and plot (runs/bench)")
    p.add_argument("--markdown", type=Path, nargs="+", default=[], metavar="FILE", help="documents to put the table in")
    p.add_argument("--load", type=Path, metavar="JSON", help="report these saved results, measure nothing")
    p.add_argument("--seed", type=int, default=0, help="of the data")
    return p


@contextlib.contextmanager
def empty_compile_cache() -> Iterator[None]:
    """A first call of torch.compile is timed as a user meets it, so without what an earlier run left."""
    name = "TORCHINDUCTOR_CACHE_DIR"  # torch sets it too, to a folder that outlives the process
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="genfast-bench-") as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def run(names: Sequence[str], options: Options) -> list[Result]:
    """Measures the named benchmarks, printing each case as it is done."""
    # What the first use of torch costs is nobody's first call.
    x = torch.ones(64, 64, device=options.device, requires_grad=True)
    torch.autograd.grad((x @ x).exp().sum(), [x])
    results = []
    for name in names:
        module = importlib.import_module(f".bench_{name}", __package__)
        for case in module.cases(options):
            result = measure(case, options)
            print(report.format_case(result), flush=True)
            results.append(result)
    return results


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
    if args.load is not None:
        try:
            results, state = report.load(args.load)
        except (OSError, ValueError, KeyError, TypeError) as error:
            p.error(f"--load: cannot read results from {args.load}: {error}")
        for result in results:
            print(report.format_case(result))
    else:
        options = checked(p, args)
        torch.set_num_threads(options.threads)
        state = machine.state(options)
        print("  ".join(f"{key}={value}" for key, value in state.items() if value is not None))
        if note := machine.warning(state):
            print(note, file=sys.stderr)
        print()
        with empty_compile_cache():
            results = run(args.names or available(), options)
        stem = options.device.type
        written = report.save(results, state, args.out, stem)
        picture = args.out / f"{stem}.png"
        if plots.draw(results, state, picture):
            written.append(picture)
        print("written:", *written)
    print(report.format_summary(results))
    try:
        for path in args.markdown:
            report.update_document(path, report.markdown(results, state))
    except (OSError, ValueError) as error:
        p.error(f"--markdown: {error}")
    return 0 if all(result.agrees for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
