"""The benchmark suite: `python -m benchmarks`, or `genfast bench` where genfast is installed.

A benchmark is a file `bench_<name>.py`, found by its name, with one function:

    def cases(options: Options) -> Iterator[Case]: ...

and perhaps a second one, `calls`, with the small calls that `bench_calls.py` gathers. A `Case` is one piece of work and
the contenders that do it, genfast's first. `timing.measure` compares their outputs, then times them interleaved in one
process; `runner` goes from case to case and `journal` writes each result as it is there; `report` prints, saves and
draws them. See `timing` for the fields of a case, `bench_coupling.py` for a short example, and docs/performance.md for
how to read the table.

Imports inside this package are relative: it is also installed as `genfast.benchmarks`.
"""
