"""What a run has measured, a line of JSON at a time, so that nothing is lost with the process.

Every case is announced before it is prepared and before it is measured, and its result written when it is there. A run
that goes on behind one that died so knows the results, and the case that was at work: that is a result too.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from .timing import Case, Result

__all__ = ["Journal"]


class Journal:
    """The events of a run: "prepare", "measure" and "done" of case `index` of benchmark `name`, and "end": no such."""

    def __init__(self, path: Path, mode: Literal["new", "resume", "read"] = "new") -> None:
        """Begins a journal, goes on with one, or only reads it.

        Raises:
            OSError: the file cannot be read or written.
            ValueError: it is not a journal.
        """
        self._path = path
        self._last: dict[tuple[str, int], dict[str, Any]] = {}
        self.finished = False
        self.state: dict[str, Any] = {}
        if mode != "read":
            path.parent.mkdir(parents=True, exist_ok=True)
        if mode == "new" or (mode == "resume" and not path.exists()):
            path.write_text("", encoding="utf-8")
            return
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # the last line may have been cut short
        try:
            for line in whole.splitlines():
                self._take(json.loads(line))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("it is no journal of benchmarks") from error
        if mode == "resume" and whole != text:
            path.write_text(whole, encoding="utf-8")
        self._bury()

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] == "machine":
            self.state = event["state"]
            self.finished = False
        elif event["event"] == "finished":
            self.finished = True
        if "name" not in event:
            return
        key = event["name"], event["index"]
        known = self._last.get(key, {}).get("event")
        if known is None or known == "prepare" or (known == "measure" and event["event"] != "prepare"):
            self._last[key] = event

    def _bury(self) -> None:
        """Gives the case at which an earlier process died its result."""
        for (name, index), event in list(self._last.items()):
            if event["event"] in ("prepare", "measure"):
                op, label = event.get("op", name), event.get("label", f"case {index + 1}")
                result = Result(op, label, [], problem=f"the process ended as it came to {event['event']} it")
                self._take({"event": "done", "name": name, "index": index, "result": dataclasses.asdict(result)})
            if event["event"] == "prepare":  # and so cannot be passed
                self._take({"event": "end", "name": name, "index": index + 1})

    def _write(self, event: str, **fields: Any) -> None:
        line = {"event": event, **fields}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._take(line)

    def machine(self, state: dict[str, Any]) -> None:
        """What `machine.state` says, at the start of each process."""
        self._write("machine", state=state)

    def prepare(self, name: str, index: int) -> None:
        """Its data and contenders are about to be made."""
        self._write("prepare", name=name, index=index)

    def measure(self, name: str, index: int, case: Case) -> None:
        """It is about to be measured."""
        self._write("measure", name=name, index=index, op=case.op, label=case.label)

    def done(self, name: str, index: int, result: Result) -> None:
        """It has this result."""
        self._write("done", name=name, index=index, result=dataclasses.asdict(result))

    def end(self, name: str, index: int) -> None:
        """The benchmark has no such case."""
        self._write("end", name=name, index=index)

    def finish(self) -> None:
        """The run is over."""
        self._write("finished")

    def has(self, name: str, index: int) -> bool:
        """Whether this case has a result."""
        return self._last.get((name, index), {}).get("event") == "done"

    def ended(self, name: str) -> bool:
        """Whether all cases of the benchmark have results."""
        return any(key[0] == name and event["event"] == "end" for key, event in self._last.items())

    def results(self) -> list[Result]:
        """All results, in the order of the benchmarks' first cases."""
        names = list(dict.fromkeys(name for name, _ in self._last))
        keys = sorted(self._last, key=lambda key: (names.index(key[0]), key[1]))
        events = [self._last[key] for key in keys]
        return [Result.of(event["result"]) for event in events if event["event"] == "done"]
