"""What a job tells whoever shows a person how far it is."""

from typing import Protocol


class Progress(Protocol):
    """What a display needs to know."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins, of so many pairs."""

    def advance(self, pairs: int) -> None:
        """So many more pairs are done."""
