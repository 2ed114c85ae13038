"""Two evaluations side by side: differences of the same pairs, with intervals and significance."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adgen.evaluation.creative_scores import ROW_SCORES
from adgen.evaluation.statistics import RESAMPLES, Bootstrap, Difference
from adgen.evaluation.stored_rows import check_rows, count_rows, joined_by_user


@dataclass
class Comparison:
    """This evaluation minus another, over the pairs that both have."""

    against: str
    pairs: int = 0
    only_here: int = 0
    only_there: int = 0
    differences: dict[str, Difference] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        differences = {name: each.as_dict() for name, each in self.differences.items()}
        counts = {name: getattr(self, name) for name in ("against", "pairs", "only_here", "only_there")}
        return counts | {"differences": differences}


def compare(here: Path, there: Path, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Joined by (pair_id, variant). SettingsError: no evaluation there, or another version's."""
    check_rows(there)
    bootstrap, found = Bootstrap(ROW_SCORES, resamples, seed), Comparison(str(there))
    differences = ", ".join(f"here.{name} - there.{name} AS {name}" for name in ROW_SCORES)
    for batch in joined_by_user(here, there, differences):
        found.pairs += batch.num_rows
        values = np.stack([batch[name].to_numpy(zero_copy_only=False) for name in ROW_SCORES], axis=1)
        bootstrap.add(batch["user_key"].to_pylist(), values)
    found.only_here, found.only_there = (count_rows(folder) - found.pairs for folder in (here, there))
    found.differences = bootstrap.differences()
    return found
