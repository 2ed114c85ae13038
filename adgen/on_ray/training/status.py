"""The status actor: what driver, workers and batch makers report to each other. It imports nothing heavy."""

from typing import Any

import ray


@ray.remote(num_cpus=0)
class StatusActor:
    """Where the wave begins, how training goes, why it stopped."""

    def __init__(self) -> None:
        self.wave_start, self.progress, self.failure = 0, {}, None

    def begin_wave(self, number: int) -> None:
        """The wave's first micro-batch."""
        self.wave_start = number

    def first_of_wave(self) -> int:
        """The first micro-batch of the present wave."""
        return self.wave_start

    def update(self, progress: dict[str, Any]) -> None:
        """What to show."""
        self.progress = self.progress | progress

    def read(self) -> tuple[dict[str, Any], tuple[str, str] | None]:
        """Progress, and the kind and message of a failure that no restart can cure."""
        return self.progress, self.failure

    def fail(self, kind: str, message: str) -> None:
        """The first failure is the one that counts."""
        self.failure = self.failure or (kind, message)
