"""Scores that only many pictures have together: how much creatives of one pair or one product differ, and how far the set of all
is from the references."""

from pathlib import Path
from typing import Any, NamedTuple

from adgen.evaluation.features import (
    FEATURES,
    SEED_DIVERSITY,
    USER_DIVERSITY,
    seed_diversity,
    set_distance,
    user_diversity,
)
from adgen.evaluation.statistics import Estimate


class SetScore(NamedTuple):
    """One of them."""

    value: float
    low: float | None
    """Of the 95% interval; None where there is none to be told, as of a distance."""
    high: float | None
    of: dict[str, int]
    """What it is of: so many pairs, products, creatives."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def has_features(folder: Path) -> bool:
    """Whether the evaluation has any to score sets by."""
    return any((folder / FEATURES).glob("*.parquet"))


def set_scores(folder: Path, has_seeds: bool, network: str, resamples: int, seed: int) -> dict[str, SetScore]:
    """By name, those that there are pictures for: SEED_DIVERSITY of pairs with several seeds, USER_DIVERSITY of products that
    several users got, and where `network` made features the distances of `SetDistance`."""
    found = {}
    if has_seeds and (estimate := seed_diversity(folder, resamples, seed)):
        found[SEED_DIVERSITY] = _of(estimate, {"pairs": estimate.rows, "users": estimate.users})
    if estimate := user_diversity(folder, resamples, seed):
        found[USER_DIVERSITY] = _of(estimate, {"products": estimate.rows})
    if network:
        distances, counts = set_distance(folder, network, seed)
        found |= {name: SetScore(value, None, None, counts) for name, value in distances.items()}
    return found


def _of(estimate: Estimate, of: dict[str, int]) -> SetScore:
    return SetScore(estimate.mean, estimate.low, estimate.high, of)
