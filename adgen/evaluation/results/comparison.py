"""Two evaluations side by side: the same pairs' means, their differences with intervals and significance, and the pairs that
changed most."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adgen.evaluation.results.diversity import compare_diversity
from adgen.evaluation.results.extremes import Extremes
from adgen.evaluation.results.rows import check_rows, count_rows, joined_by_user, values_of
from adgen.evaluation.scores import names_of, sheet_scores, with_old_names
from adgen.evaluation.scoring.creatives import CORPUS_BLEU, ROW_SCORES
from adgen.evaluation.statistics import RESAMPLES, Change, ClusteredMeans
from adgen.evaluation.titles.bleu import NUM_COUNTS, CorpusBleu

SHEET_ROWS = 6
_SHOWN = ("pair_id", "variant", "product_id", "locale", "title", "uri", "there_title", "there_uri")


@dataclass
class Comparison:
    """This evaluation compared with another, over the pairs that both have."""

    against: str
    pairs: int = 0
    only_here: int = 0
    only_there: int = 0
    differences: dict[str, Change] = field(default_factory=dict)
    sets: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Distances here and there; each of all its own pictures, so that nothing is paired and no significance is known."""
    not_compared: tuple[str, ...] = ()
    """Scores that other networks gave there."""
    sheet_score: str | None = None
    """What the pairs that changed most are chosen by."""
    lost: list[dict[str, Any]] = field(default_factory=list)
    """Rows of both (`uri`, `there_uri` ...) with their `value`, the difference; the largest loss first."""
    gained: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: without single rows."""
        differences = with_old_names({name: each.as_dict() for name, each in self.differences.items()})
        counts = {name: getattr(self, name) for name in ("against", "pairs", "only_here", "only_there")}
        sets = {name: {"here": here, "there": there} for name, (here, there) in self.sets.items()}
        return counts | {"not_compared": list(self.not_compared), "differences": differences, "sets": sets}


def compare(here: Path, there: Path, resamples: int = RESAMPLES, seed: int = 0, not_compared: Collection[str] = ()) -> Comparison:
    """Joined by (pair_id, variant), without the scores `not_compared`. SettingsError: no evaluation there, or another version's."""
    check_rows(there)
    names = tuple(name for name in ROW_SCORES if name not in not_compared)
    tally, found = _Tally(names, resamples, seed), Comparison(str(there), not_compared=tuple(sorted(not_compared)))
    for batch in joined_by_user(here, there, _columns(names)):
        found.pairs += batch.num_rows
        tally.count(batch)
    found.only_here, found.only_there = (count_rows(folder) - found.pairs for folder in (here, there))
    found.differences = tally.changes()
    diversities = compare_diversity(here, there)
    found.differences |= {name: each for name, each in diversities.items() if name not in not_compared}
    found.sheet_score = next((name for name in sheet_scores() if name in found.differences), None)
    if found.sheet_score:
        found.lost, found.gained = (extremes.rows() for extremes in tally.extremes[found.sheet_score])
    return found


def _columns(names: tuple[str, ...]) -> str:
    rows = ["pair_id", "variant", *(f"here.{name}" for name in ("product_id", "locale", "title", "uri"))]
    theirs = [f"there.{name} AS there_{name}" for name in ("title", "uri", "bleu_counts", *names)]
    return ", ".join([*rows, *theirs, *(f"here.{name}" for name in ("bleu_counts", *names))])


class _Tally:
    def __init__(self, names: tuple[str, ...], resamples: int, seed: int):
        self.names = names
        self.means = ClusteredMeans(names)
        self.titles = tuple(CorpusBleu(resamples, seed) for _ in range(2))
        self.sums = np.zeros((2, len(names)))
        sheets = [name for name in sheet_scores() if name in names]
        self.extremes = {name: (Extremes(-1, _SHOWN, SHEET_ROWS), Extremes(1, _SHOWN, SHEET_ROWS)) for name in sheets}

    def count(self, batch: pa.RecordBatch) -> None:
        here, there = (values_of(batch, [f"{side}{name}" for name in self.names]) for side in ("", "there_"))
        difference = here - there
        self.sums += [np.where(np.isfinite(difference), each, 0).sum(0) for each in (here, there)]
        self.means.add(batch["user_key"].to_pylist(), difference)
        self._count_titles(batch)
        for name, both in self.extremes.items():
            for extremes in both:
                extremes.offer(batch, difference[:, self.names.index(name)])

    def _count_titles(self, batch: pa.RecordBatch) -> None:
        columns = [batch[f"{side}bleu_counts"] for side in ("", "there_")]
        both = pc.and_(*(column.is_valid() for column in columns))
        users = batch["user_key"].filter(both).to_pylist()
        for titles, column in zip(self.titles, columns, strict=True):
            titles.add(users, column.filter(both).flatten().to_numpy().reshape(-1, NUM_COUNTS))

    def changes(self) -> dict[str, Change]:
        means = lambda name, rows: self.sums[:, self.names.index(name)] / rows  # noqa: E731
        found = self.means.differences()
        changes = {name: Change(*map(float, means(name, each.rows)), each) for name, each in found.items()}
        if titles := self.titles[0].change_from(self.titles[1]):
            changes[CORPUS_BLEU] = titles
        return {name: changes[name] for name in names_of("title", "all titles", "picture") if name in changes}
