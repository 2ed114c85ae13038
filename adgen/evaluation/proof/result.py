"""What a proof found."""

from dataclasses import dataclass, field
from typing import Any

from adgen.evaluation.proof.goals import judged, unmeasured


@dataclass
class Proof:
    """Values by name, rows of comparisons, and what could not be measured."""

    values: dict[str, Any] = field(default_factory=dict)
    noise: list[dict[str, Any]] = field(default_factory=list)
    """A row for each share of stray clicks."""
    ablation: list[dict[str, Any]] = field(default_factory=list)
    """A row for each other model."""
    notes: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """Names of goals that were measured and missed."""
        return [verdict.goal.name for verdict in judged(self.values) if verdict.hit is False]

    @property
    def unmeasured(self) -> list[str]:
        """Names of goals that were not measured."""
        return unmeasured(self.values)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        compared = {
            "noise": self.noise,
            "ablation": self.ablation,
            "notes": self.notes,
            "missed": self.missed,
            "unmeasured": self.unmeasured,
        }
        return {**self.values, **compared}
