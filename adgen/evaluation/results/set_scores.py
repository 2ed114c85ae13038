"""Scores that only many pictures have together: how much creatives of one pair or one product differ, and how far the set of all
is from the references."""

from pathlib import Path
from typing import Any, NamedTuple

from adgen.evaluation.results.diversity import USER_DIVERSITY, mean_diversity, write_diversity
from adgen.evaluation.results.features import FEATURES, set_distance
from adgen.evaluation.statistics import Estimate, why_no_interval


class SetScore(NamedTuple):
    """One of them."""

    value: float
    low: float | None
    """Of the 95% interval; None where there is none, as of a distance."""
    high: float | None
    of: dict[str, int]
    """How many pairs, products or creatives it is of."""
    effective_users: float | None = None
    """Of a diversity: what its users (or products) of unequal numbers of rows are worth."""

    @property
    def why_no_interval(self) -> str | None:
        """Of a diversity; None where there is one, and for a distance, which never has one."""
        if self.low is not None or "creatives" in self.of:
            return None
        return why_no_interval(next(iter(self.of.values())), self.of.get("users", self.of.get("products")), self.effective_users)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def has_features(folder: Path) -> bool:
    """Whether the evaluation has any to score sets by."""
    return any((folder / FEATURES).glob("*.parquet"))


def set_scores(folder: Path, has_seeds: bool, network: str, seed: int) -> dict[str, SetScore]:
    """By name, those that there are pictures for: diversities, which are written into the folder, and where `network`
    made features the distances of `SetDistance`."""
    write_diversity(folder, has_seeds)
    diversities = mean_diversity(folder)
    found = {name: _of(each, _counted(name, each)) for name, each in diversities.items()}
    if network:
        distances, counts = set_distance(folder, network, seed)
        found |= {name: SetScore(value, None, None, counts) for name, value in distances.items()}
    return found


def _of(each: Estimate, of: dict[str, int]) -> SetScore:
    low, high = (None, None) if each.low is None else (max(0.0, each.low), min(2.0, each.high))  # 1 - cosine is nothing else
    return SetScore(each.mean, low, high, of, each.effective_users)


def _counted(name: str, each: Estimate) -> dict[str, int]:
    return {"products": each.rows} if name == USER_DIVERSITY else {"pairs": each.rows, "users": each.users}
