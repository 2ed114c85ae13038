"""What people see on a terminal: text without control characters, tables, summaries, JSON."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adgen.errors import CONTROLS, printable


@contextmanager
def plain_streams() -> Iterator[None]:
    """Text that a console cannot show is escaped, not an error; BrokenPipeError, where whoever reads stdout has gone, is raised in
    the block and not at the interpreter's end."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 until the process ends
        raise


def print_json(value: Any) -> int:
    """One JSON document; 0, the exit code."""
    text = json.dumps(value, indent=1, default=str, ensure_ascii=False)
    print(CONTROLS.sub(lambda match: f"\\u{ord(match.group()):04x}", text))  # JSON still: a control stands in strings only
    return 0


def print_summary(summary: Any, as_json: bool) -> int:
    """Numbers as a table, lists line by line; the summaries are dataclasses. 0, the exit code."""
    values = dataclasses.asdict(summary)
    if as_json:
        return print_json(values)
    lists = {name: value for name, value in values.items() if isinstance(value, list)}
    print_table(("", ""), [(name, text_of(value)) for name, value in values.items() if name not in lists])
    for name, lines in lists.items():
        for line in lines:
            print(f"{name}: {printable(str(line))}")
    return 0


def print_record(record: Any, as_json: bool) -> int:
    """As `print_summary`; what has names of its own gets a line for each of them. 0, the exit code."""
    values = dataclasses.asdict(record)
    if as_json:
        return print_json(values)
    rows = []
    for name, value in values.items():
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        rows += [(name, text_of(value))] if inner is None else [(f"{name}.{key}", text_of(each)) for key, each in inner]
    print_table(("", ""), rows)
    return 0


def print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Rows of text below the columns' names."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    for column in columns:
        table.add_column(printable(column), overflow="fold", no_wrap=column != columns[-1])
    for row in rows:
        # Text, not str: a title may hold what rich takes for markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


class TerminalProgress:
    """`adgen.progress.Progress` for commands without Ray: a bar on stderr, and nothing where that is no terminal."""

    def __init__(self, of_bytes: bool = False):
        self._of_bytes = of_bytes

    def __enter__(self) -> "TerminalProgress":
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        count = DownloadColumn() if self._of_bytes else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        """Its bar below those of earlier phases."""
        self._task = self._bar.add_task(name, total=total)

    def advance(self, amount: int, numbers: str = "") -> None:
        """So much more."""
        self._bar.advance(self._task, amount)


def text_of(value: Any) -> str:
    """A value in a table; whole numbers with thousands separators."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
