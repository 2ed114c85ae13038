"""What a person sees of a training run: steps, loss, speed, time left. On stderr, always."""

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """A bar in steps."""

    def __init__(self, console: Console):
        self._bar = Progress(
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
