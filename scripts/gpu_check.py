#!/usr/bin/env python3
"""The phases of scripts/gpu_check.sh, which prepares what they need: each in a process group of its own with a share of
the time, its outcome written when it is known, and a summary of what ran. Needs the standard library only.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cuda_report import demangle, shorten

TOTAL = 525
"""Seconds from the start of the script to the summary."""

BUILD = """"$@" && "$0" -m genfast info && "$0" -c '
from genfast import _native
raise SystemExit(None if _native.has_cuda() else "the build has no CUDA kernels")'
"""

REPORT = '"$0" -m benchmarks --load "$1" >/dev/null; "$0" scripts/cuda_report.py --log "$2" --out "$3"'
"""The tables, made of what was measured even where the benchmarks were stopped; then registers and spills."""

NOTES = "notes.jsonl"
"""What tests/gpu_plugin.py has to say, in the work folder."""

NO_PLUGINS = ("-p", "no:cacheprovider", "-p", "no:benchmark", "-p", "no:randomly", "-p", "no:timeout")
"""Of pytest, which may be installed there and are in the way."""

NO_TIME = "no time left"
"""Why the tests of tests/gpu_plugin.py are skipped that come too late."""


@dataclasses.dataclass
class Phase:
    """A command, its share of the time that is left, and how its log says how it went.

    Attributes:
        name: of the phase and its log.
        command: given the seconds it may take; None where it cannot run, for the reason in `missing`.
        weight: share of the time among the phases that are still to come.
        most: seconds that it gets at most.
        judge: from the exit code and the log to the outcome and a line about it.
    """

    name: str
    command: Callable[[float], Sequence[str]] | None
    weight: float
    most: float
    judge: Callable[[int, str], tuple[str, str]]
    missing: str = ""
    environment: Callable[[float], dict[str, str]] = lambda _: {}


@dataclasses.dataclass
class Outcome:
    """How a phase went: "passed", "incomplete", "failed", "timed out" or "not run"."""

    phase: str
    outcome: str
    seconds: float
    detail: str


def last(pattern: str, log: str) -> str:
    """The last line of a log that matches."""
    lines = [line.strip() for line in log.splitlines() if re.search(pattern, line)]
    return lines[-1] if lines else ""


def judge_build(code: int, log: str) -> tuple[str, str]:
    """The kernels are there."""
    wrong = last(r"(?i)\berror\b|has no CUDA kernels", log)
    return ("passed", last(r"^CUDA kernels", log)) if code == 0 else ("failed", f"exit code {code}; {wrong}")


def judge_benchmarks(code: int, log: str) -> tuple[str, str]:
    """All cases were measured and agree."""
    detail = last(r"cases; speed goals", log)
    if code != 0:
        return "failed", f"exit code {code}; {detail}"
    late = last(r"^NO TIME LEFT", log)
    return ("incomplete", f"{detail}; {late}") if late else ("passed", detail)


def judge_tests(code: int, log: str) -> tuple[str, str]:
    """Some passed, none failed, all had time."""
    detail = last(r"\d+ (passed|failed|skipped|error|deselected)", log).strip("= ")
    if code != 0 or not re.search(r"[1-9]\d* passed", detail):
        return "failed", f"exit code {code}; {detail or last('.', log)}"
    late = len(re.findall(NO_TIME, log))
    return ("incomplete", f"{detail}; {NO_TIME} for the rest") if late else ("passed", detail)


def judge_sanitizer(code: int, log: str) -> tuple[str, str]:
    """As the tests, and the tool found nothing; it may not run on this device at all."""
    if "Device not supported" in log:
        return "not run", "compute-sanitizer does not support this device (a virtual machine?)"
    outcome, detail = judge_tests(code, log)
    return outcome, f"{last('SUMMARY', log).strip('= ')}; {detail}"


def phases(python: str, work: Path, out: Path) -> list[Phase]:
    """What is run, in this order."""
    results, small = out / "cuda.jsonl", "tests/test_small_cases.py"
    pytest = [python, "-m", "pytest", "-m", "cuda", "-q", "-rfEs", *NO_PLUGINS, "-p", "tests.gpu_plugin"]
    workers = str(min(8, os.cpu_count() or 1))
    parallel = subprocess.run([python, "-c", "import xdist"], capture_output=True, check=False).returncode == 0
    sanitizer = shutil.which("compute-sanitizer")

    def until(seconds: float) -> dict[str, str]:
        margin = max(10, 0.2 * seconds)
        return {
            "GENFAST_TESTS_UNTIL": str(time.time() + seconds - margin),
            "GENFAST_TEST_LIMIT": "60",
            "GENFAST_TEST_NOTES": str(work / NOTES),
        }

    def sanitize(tool: str) -> Phase:
        command = [sanitizer or "", "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no", *pytest]
        return Phase(
            tool,
            (lambda _: [*command, "-p", "no:xdist", "-k", "float32 or bfloat16", small]) if sanitizer else None,
            *(11, 120),
            judge_sanitizer,
            "no compute-sanitizer beside nvcc or on the PATH",
            # Without torch's cache each tensor is an allocation of its own, so that a step past its end is seen.
            lambda seconds: {**until(seconds), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )

    install = [
        *(python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-v", "--disable-pip-version-check"),
        *("-C", f"build-dir={work / 'cmake'}", "-C", "cmake.define.GENFAST_CUDA=ON"),
        *("-C", f"cmake.define.GENFAST_CUDA_ARCHS={os.environ.get('GENFAST_CUDA_ARCHS', 'native')}", "-e", "."),
    ]
    bench = [python, "-m", "benchmarks", "--device", "cuda", "--quick", "--no-compile", "--survive", "--out", str(out)]
    return [
        Phase("build", lambda _: ["bash", "-c", BUILD, python, *install], 100, 300, judge_build),
        Phase(
            "benchmarks",
            lambda seconds: [*bench, "--case-limit", "30", "--time-limit", f"{max(seconds - 35, 1):.0f}"],
            *(35, 180),
            judge_benchmarks,
        ),
        Phase(
            "small",
            lambda _: [*pytest, *(["-n", "1"] if parallel else []), small],
            *(18, 120),
            judge_tests,
            environment=lambda seconds: {**until(seconds), "GENFAST_TRACE_KERNELS": "1"},
        ),
        Phase(
            "tests",
            lambda _: [*pytest, *(["-n", workers] if parallel else []), "--ignore", small, "tests"],
            *(25, 200),
            judge_tests,
            environment=until,
        ),
        sanitize("memcheck"),
        sanitize("racecheck"),
        Phase(
            "report",
            lambda _: ["bash", "-c", REPORT, python, *map(str, (results, work / "build.log", work / "kernels.json"))],
            *(2, 30),
            lambda code, log: ("failed" if code else "passed", last("kernels, ", log)),
        ),
    ]


def run(phase: Phase, limit: float, work: Path, log: Path) -> Outcome:
    """Runs one phase, its output in <work>/<name>.log and at the end of the whole log."""
    if phase.command is None:
        return Outcome(phase.name, "not run", 0, phase.missing)
    if limit < 5:
        return Outcome(phase.name, "not run", 0, NO_TIME)
    own = work / f"{phase.name}.log"
    command = phase.command(limit)
    started = time.monotonic()
    with own.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **phase.environment(limit)},
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    seconds = time.monotonic() - started
    text = own.read_text(encoding="utf-8", errors="replace")
    with log.open("a", encoding="utf-8") as file_:
        file_.write(f"\n=== {phase.name} (limit {limit:.0f} s): {' '.join(command)}\n{text}")
    outcome, detail = phase.judge(1 if code is None else code, text)
    if code is None:
        outcome, detail = "timed out", f"after {limit:.0f} s; {detail}"
    return Outcome(phase.name, outcome, round(seconds, 1), detail)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it started, which may outlive it."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def notes(work: Path) -> list[dict[str, Any]]:
    """What the tests noted."""
    path = work / NOTES
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def kernels_that_ran(work: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Lines about the kernels that the small cases ran, and the names of those that ran and that did not."""
    built = work / "kernels.json"
    traced = {name for event in notes(work) for name in event.get("kernels", [])}
    problems = [event["untraced"] for event in notes(work) if "untraced" in event]
    plain = [name for name in traced if not name.startswith("_Z")]
    mangled = [name for name in traced if name.startswith("_Z")]
    names = {normal(shorten(name)) for name in [*plain, *demangle(sorted(mangled))]}
    listed = {normal(kernel["name"]) for kernel in json.loads(built.read_text())} if built.exists() else set()
    found = {
        "ran": sorted(names),
        "did not run": sorted(listed - names) if names else [],
        "not in the build's list": sorted(names - listed) if listed else [],
    }
    if not names:
        why = problems[0] if problems else "torch.profiler saw none"
        return [f"kernels that ran: unknown ({why})"], found
    total = collections.Counter(name.partition("<")[0] for name in listed | names)
    seen = collections.Counter(name.partition("<")[0] for name in names)
    parts = [f"{base} {seen[base]}/{total[base]}" for base in sorted(total) if seen[base]]
    lines = [f"kernels that ran in the small cases ({len(names)} of {len(listed | names)}): {', '.join(parts)}"]
    if missing := found["did not run"]:
        some = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
        lines.append(f"kernels that did not run in the small cases: {some}")
    return lines, found


def normal(name: str) -> str:
    """A kernel's name without what demanglers do differently."""
    name = re.sub(r"\((?:int|unsigned int|bool|long|unsigned long)\)", "", name)
    name = re.sub(r"(?<=[<, ])(\d+)(?:u|ul|l)\b", r"\1", name)
    return re.sub(r"\s+", "", name).replace("__half", "half")


def measured(results: Path) -> list[str]:
    """A line for each case that was measured or failed."""
    if not results.exists():
        return ["no benchmark was measured"]
    found = {}
    for line in results.read_text().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut short
        if "result" in event:
            found[event["name"], event["index"]] = event["result"]
    lines = []
    for result in found.values():
        rows = [row for row in result["rows"] if row["seconds"]]
        text = result["problem"] or "; ".join(
            [f"{rows[0]['seconds']['median'] * 1e6:.1f} us"]
            + [f"{row['speedup']['median']:.2f}x {row['name']}" for row in rows[1:]]
            + [f"{rows[0]['seconds']['median'] / result['floor']:.1f}x floor"] * bool(result["floor"])
            if rows
            else [row["problem"] for row in result["rows"] if row["problem"]]
        )
        lines.append(f"  {result['op']} {result['label']}: {text}")
    return lines


def failures(work: Path, names: Sequence[str]) -> list[str]:
    """The first lines that tell what failed."""
    lines = [f"  GPU lost in {event['test']}: {event['lost'][:300]}" for event in notes(work) if "lost" in event]
    for name in names:
        text = (work / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        own = [line for line in text.splitlines() if re.match(r"(FAILED|ERROR) ", line)]
        lines += [f"  {name}: {line[:300]}" for line in own[:15] or text.splitlines()[-15:]]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all phases; 1 where one failed."""
    p = argparse.ArgumentParser(description=__doc__)
    for name in ("--python", "--work", "--out", "--gpu", "--started"):
        p.add_argument(name, required=True)
    args = p.parse_args(argv)
    work, out = Path(args.work), Path(args.out)
    log, report = out / "gpu_check.log", out / "gpu_check.json"
    for old in (log, report, work / NOTES, work / "kernels.json", out / "cuda.jsonl"):
        old.unlink(missing_ok=True)
    print(f"gpu_check: {args.gpu}", flush=True)

    started = float(args.started)
    outcomes: list[Outcome] = []
    kernels: dict[str, list[str]] = {}

    def write() -> None:
        report.write_text(
            json.dumps(
                {
                    "machine": args.gpu,
                    "seconds": round(time.time() - started),
                    "phases": [dataclasses.asdict(outcome) for outcome in outcomes],
                    "kernels": kernels,
                    "built": json.loads(built.read_text()) if (built := work / "kernels.json").exists() else [],
                },
                indent=1,
            )
            + "\n"
        )

    waiting = phases(args.python, work, out)
    while waiting:
        phase, *waiting = waiting
        share = phase.weight / (phase.weight + sum(other.weight for other in waiting if other.command is not None))
        left = TOTAL - (time.time() - started)
        # The build comes first or nothing comes at all, so it takes what it needs.
        outcome = run(phase, min(phase.most, left if phase.name == "build" else left * share), work, log)
        outcomes.append(outcome)
        print(
            f"gpu_check: {outcome.phase:<10} {outcome.outcome:<10} {outcome.seconds:>4.0f} s  {outcome.detail}",
            flush=True,
        )
        write()
        if phase.name == "build" and outcome.outcome != "passed":
            waiting = []
    failed = [outcome.phase for outcome in outcomes if outcome.outcome in ("failed", "timed out")]
    if len(outcomes) > 1:
        print(
            "benchmarks, genfast's time and how many times faster it is than:", *measured(out / "cuda.jsonl"), sep="\n"
        )
        lines, kernels = kernels_that_ran(work)
        print(*lines, sep="\n")
        write()
    if failed:
        print(*failures(work, failed), sep="\n")
        print(f"gpu_check: {', '.join(failed)} failed on {args.gpu}; see {log}")
        return 1
    partly = [outcome.phase for outcome in outcomes if outcome.outcome != "passed"]
    note = f" (but {', '.join(partly)}: incomplete or not run)" if partly else ""
    print(f"gpu_check: all that ran passed on {args.gpu} in {time.time() - started:.0f} s{note}; results in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
