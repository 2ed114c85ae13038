"""What a proof found."""

from dataclasses import dataclass, field
from typing import Any

from adgen.evaluation.proof.goals import GOALS, check_goals
from adgen.evaluation.proof.unseen import Finding
from adgen.evaluation.scores import with_old_names

OLD_NAMES = {
    "style_accuracy_of_other_user": "style_accuracy_of_stranger",
    "style_accuracy_under_other_user": "style_accuracy_under_stranger",
    "pbs_to_other_user": "pbs_to_stranger",
}
"""Values that were renamed in 0.2.0: JSON has them under both names until 0.3.0."""


@dataclass
class Proof:
    """Values by name, rows of comparisons, and what could not be measured."""

    values: dict[str, Any] = field(default_factory=dict)
    noise: list[dict[str, Any]] = field(default_factory=list)
    """A row for each share of stray clicks."""
    ablation: list[dict[str, Any]] = field(default_factory=list)
    """A row for each other model."""
    unseen: list[Finding] = field(default_factory=list)
    """Lines of the sections on unseen ground."""
    notes: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """Names of goals that were measured and missed."""
        names = [verdict.goal.name for verdict in check_goals(self.values) if verdict.hit is False]
        return names + [_name(line) for line in self.unseen if line.verdict == "missed"]

    @property
    def undecided(self) -> list[str]:
        """Names of goals whose values cannot be trusted, since the classifier that gave them is too weak, or that lie within an
        error of their limit."""
        names = [verdict.goal.name for verdict in check_goals(self.values) if verdict.undecided]
        return names + [_name(line) for line in self.unseen if line.verdict == "undecided"]

    @property
    def unmeasured(self) -> list[str]:
        """Names of goals that have no value."""
        return [goal.name for goal in GOALS if goal.reached and self.values.get(goal.name) is None]

    @property
    def falls_short(self) -> bool:
        """Whether any goal was not shown to be reached."""
        return bool(self.missed or self.undecided or self.unmeasured)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        compared = {"noise": self.noise, "ablation": self.ablation, "notes": self.notes}
        compared["unseen"] = [line.as_dict() for line in self.unseen]
        goals = {"missed": self.missed, "undecided": self.undecided, "unmeasured": self.unmeasured}
        return {**with_old_names(self.values, OLD_NAMES), **compared, **goals}


def _name(line: Finding) -> str:
    return f"{line.section}: {line.measure} ({line.condition})"
