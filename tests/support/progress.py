"""A progress display that shows nothing."""


class Silent:
    """Remembers what a real one would have shown."""

    def __init__(self) -> None:
        self.phases, self.done, self.numbers = [], 0, ""

    def phase(self, name: str, total: int | None = None) -> None:
        self.phases.append(name)

    def advance(self, amount: int, numbers: str = "") -> None:
        self.done, self.numbers = self.done + amount, numbers
