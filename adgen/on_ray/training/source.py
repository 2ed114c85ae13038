"""What a training worker gets from the driver, and where its batches come from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adgen.on_ray.training.run_folder import on_this_node
from adgen.on_ray.training.settings import PretrainSettings
from adgen.training.example_files import ExampleFolder, ExampleReader, part_name
from adgen.training.order import Order, held_out
from adgen.training.settings import UNTRAINED


@dataclass(frozen=True)
class Source:
    """Where a run's batches come from; small and picklable."""

    settings: PretrainSettings
    start: str | None
    examples: str
    backgrounds: str | None
    dinov2: str | None = None
    """A directory or URI for a start that cannot see products yet, or UNTRAINED."""

    def reader(self) -> ExampleReader:
        """The examples by number."""
        return ExampleReader(ExampleFolder(self.examples))

    @property
    def directory(self) -> Path | None:
        """The start on this node."""
        return on_this_node(self.start) if self.start else None

    @property
    def dinov2_here(self) -> str | None:
        """`dinov2` on this node."""
        return self.dinov2 if self.dinov2 in (None, UNTRAINED) else str(on_this_node(self.dinov2))

    def collator(self) -> Any:
        """Rows to tensors."""
        from adgen.training.stages import make_collator

        return make_collator(self.directory, self.settings, self._backgrounds())

    def held_out(self, reader: ExampleReader) -> list[int]:
        """The examples that are kept for evaluation."""
        return held_out(reader.index.num_rows, self.settings.evaluation.examples, self.settings.seed)

    def order(self, reader: ExampleReader) -> Order:
        """All other examples, epoch after epoch."""
        return Order(reader.index.group_sizes, self.settings.seed, frozenset(self.held_out(reader)))

    def _backgrounds(self) -> list[dict]:
        if self.backgrounds is None:
            return []
        folder = ExampleFolder(self.backgrounds)
        parts = range(len(folder.index().parts))
        return [row for part in parts for row in folder.read(part_name(part)).to_pylist()]


@dataclass(frozen=True)
class Job:
    """What a worker gets from the driver."""

    source: Source
    status: Any
    facts: dict[str, Any]
    """Of the run, for training.json."""
    deepspeed: dict[str, Any] | None = None
    """What the file workers.deepspeed holds: the driver read it, and it need not be on a worker's machine."""
