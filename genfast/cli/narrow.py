"""Help on narrow terminals: each option above its text, where boxes would cut the names."""

import shutil
from collections.abc import Iterable
from typing import Any

_LEAST = 64


def width() -> int | None:
    """The columns of a narrow terminal, None for one that has room."""
    columns = shutil.get_terminal_size().columns
    return max(columns, 20) if columns < _LEAST else None


def stack(command: Any, columns: int) -> None:
    """Let the help of a typer command, made without rich's boxes, fit into so many columns."""
    context: Any = command.context_class

    class Formatter(context.formatter_class):  # type: ignore[misc]
        def __init__(self, *_arguments: Any, **_options: Any) -> None:
            super().__init__(width=columns)

        def write_dl(self, rows: Iterable[tuple[str, str]], *_arguments: Any, **_options: Any) -> None:
            for name, text in rows:
                self.write_text(name)
                self.indent()
                self.write_text(text)
                self.dedent()

    context.formatter_class = Formatter
