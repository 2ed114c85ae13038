"""What a person sees of a running job: phases, pairs or steps done with ETA, and a summary at the end. On stderr, always."""

from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar
from rich.table import Table


class Progress(Protocol):
    """What a display needs to know."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins, of so many pairs."""

    def advance(self, pairs: int) -> None:
        """So many more pairs are done."""


class RichProgress:
    """A bar in pairs, or in another unit."""

    def __init__(self, console: Console, unit: str = "pairs"):
        self._bar = RichBar(
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


class TrainingProgress:
    """A bar in steps."""

    def __init__(self, console: Console):
        self._bar = RichBar(
            SpinnerColumn(),
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )
        self._task: Any = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins, of so many steps."""
        if self._task is not None:
            self._bar.stop_task(self._task)
        self._task = self._bar.add_task(name, total=total, numbers="")

    def update(self, values: dict[str, Any]) -> None:
        """The last step's numbers."""
        self._bar.update(self._task, completed=values.get("step", 0), numbers=numbers(values))


def numbers(values: dict[str, Any]) -> str:
    """Loss, tokens a second and MFU in a few characters; nothing before the first step."""
    if values.get("loss") is None:
        return ""
    return f"loss {values['loss']:.3f}  {values['tokens_per_second']:,.0f} tokens/s  MFU {values['mfu']:.0%}"


def print_summary(console: Console, title: str, values: dict[str, Any]) -> None:
    """A table of names and values; nested counts get a line each."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in sorted(value.items())) or "-"
        table.add_row(name.replace("_", " "), str(value))
    console.print(table)
