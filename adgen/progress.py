"""How a job tells a person how far it is. Every job takes a `Progress`; `on_ray/display.py` draws it."""

from typing import Protocol


class Progress(Protocol):
    """Phases, one after another, and how much of each is done."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins; `total` units of work when that is known (pairs, steps, pictures)."""

    def advance(self, amount: int, numbers: str = "") -> None:
        """`amount` more units are done; `numbers`: what to show beside the bar, such as the loss."""
