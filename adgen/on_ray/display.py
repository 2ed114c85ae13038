"""What a person sees of a running job: phases, pairs done with ETA, and a summary at the end. On stderr, always."""

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


class RichProgress:
    """A bar in pairs, or in another unit."""

    def __init__(self, console: Console, unit: str = "pairs"):
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
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
        """A new phase begins, of so many pairs."""
        if self._task is not None:
            self._bar.stop_task(self._task)
        self._task = self._bar.add_task(name, total=total)

    def advance(self, pairs: int) -> None:
        """So many more pairs are done."""
        self._bar.advance(self._task, pairs)


def print_summary(console: Console, title: str, values: dict[str, Any]) -> None:
    """A table of names and values; nested counts get a line each."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in sorted(value.items())) or "-"
        table.add_row(name.replace("_", " "), str(value))
    console.print(table)
