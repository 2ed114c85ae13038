"""What a person sees of a job: the phase, how much of it is done, the time left, and a summary at the end. On stderr, always."""

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar
from rich.table import Table
from rich.text import Text

from adgen.errors import printable


def error_console(least_width: int = 0) -> Console:
    """Stderr for people. A table that needs `least_width` columns gets them in a log file, too."""
    console = Console(stderr=True)
    return Console(stderr=True, width=least_width) if console.width < least_width else console


class RichProgress:
    """A `Progress` as a bar with its remaining time; `unit` is what a phase's total counts."""

    def __init__(self, console: Console, unit: str = "pairs"):
        self._console = console
        self._bar = RichBar(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: Any = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins."""
        if self._task is not None:
            self._bar.stop_task(self._task)
        self._task = self._bar.add_task(name, total=total, numbers="")

    def advance(self, amount: int, numbers: str = "") -> None:
        """More of the phase is done."""
        self._bar.update(self._task, advance=amount, numbers=numbers)

    def print(self, *lines: str) -> None:
        """Lines above the bar, never broken: a log file has them whole."""
        for line in lines:
            self._console.print(printable(line), soft_wrap=True, highlight=False, markup=False)


def print_summary(title: str, values: dict[str, Any]) -> None:
    """A table of names and values on stderr; nested counts get a line each."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in sorted(value.items())) or "-"
        table.add_row(Text(printable(name.replace("_", " "))), Text(printable(str(value))))  # no markup, whatever ids hold
    error_console().print(table)
