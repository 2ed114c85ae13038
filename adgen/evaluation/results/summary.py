"""What the rows of an evaluation say together: means with intervals, by group, distributions, best and worst.

Rows are read from Parquet, twice, batch by batch: first what groups and ranges there are, then everything else, user by user.
Memory does not grow with the rows. A number that there are too few rows for is left out or None, and what rows lack is
counted.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adgen.evaluation.results.extremes import Extremes
from adgen.evaluation.results.rows import read_rows, rows_by_user, values_of
from adgen.evaluation.results.set_scores import SetScore, has_features, set_scores
from adgen.evaluation.scores import find_score, names_of, scores_that_need, sheet_scores, with_old_names
from adgen.evaluation.scoring.creatives import CORPUS_BLEU, ROW_SCORES
from adgen.evaluation.statistics import RESAMPLES, ClusteredMeans, Estimate, same_within
from adgen.evaluation.titles.bleu import NUM_COUNTS, CorpusBleu

GROUPS = ("locale", "category", "history_length")
MOST_GROUPS = 20  # of a kind; rows of the rarer ones are counted as OTHER
NOT_KNOWN, OTHER = "not known", "all others"
BINS = 30
MOST_SHEETS, SHEET_ROWS = 2, 8
PAINTED = "unpasted_product_iou"  # with a sheet of its own: what was painted is seen nowhere else
_SHOWN = ("pair_id", "variant", "product_id", "title", "uri", "locale", "status")
LONGER = "more than 10"
_LENGTHS = ((0, "0"), (3, "1 to 3"), (6, "4 to 6"), (10, "7 to 10"))


@dataclass
class Histogram:
    """How often a score's values lie where: `counts` in equal bins from `low` to `high`."""

    low: float
    high: float
    counts: np.ndarray

    @property
    def varies(self) -> bool:
        """Whether there is more between the ends than rounding."""
        return self.high - self.low > same_within(self.low, self.high)

    @property
    def bounds(self) -> tuple[float, float]:
        """Outer edges of the bins, which are around a value that does not vary."""
        return (self.low, self.high) if self.varies else (self.low - 0.5, self.high + 0.5)


@dataclass
class Summary:
    """An evaluation in numbers."""

    rows: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows by why they lack a score; a row may have several reasons."""
    scores: dict[str, Estimate] = field(default_factory=dict)
    """By name; those of rows, and CORPUS_BLEU, of all titles together."""
    sets: dict[str, SetScore] = field(default_factory=dict)
    """What only many pictures say together."""
    uncertain: dict[str, list[str]] = field(default_factory=dict)
    """Scores by why they have no interval (one_row, one_user, few_effective_users, no_variance), or no value at all
    (too_few_pictures)."""
    groups: dict[str, dict[str, dict[str, Estimate]]] = field(default_factory=dict)
    """Scores by kind of group and group."""
    histograms: dict[str, Histogram] = field(default_factory=dict)
    worst: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By score, rows with their `value`, the worst first."""
    best: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: without distributions and single rows."""
        numbers = lambda scores: with_old_names({name: each.as_dict() for name, each in scores.items()})  # noqa: E731
        groups = {kind: {name: numbers(scores) for name, scores in found.items()} for kind, found in self.groups.items()}
        counts = {name: getattr(self, name) for name in ("rows", "by_status", "left_out", "uncertain")}
        sets = {name: each.as_dict() for name, each in self.sets.items()}
        return counts | {"scores": numbers(self.scores), "sets": sets, "groups": groups}


def summarize(folder: Path, resamples: int = RESAMPLES, seed: int = 0, network: str = "") -> Summary:
    """The summary of the evaluation in `folder`; `network` made the features of its distances. SettingsError: there is none, or
    another version's."""
    survey = _Survey()
    for batch in read_rows(folder, ["status", "variant", "left_out", *GROUPS, *ROW_SCORES]):
        survey.count(batch)
    tally = _Tally(survey, resamples, seed)
    for batch in rows_by_user(folder, [*dict.fromkeys((*_SHOWN, "user_key", "bleu_counts", *GROUPS)), *ROW_SCORES]):
        tally.count(batch)
    scores = tally.whole.estimates()
    sets = set_scores(folder, survey.variants > 1, network, seed) if has_features(folder) else {}
    return Summary(
        rows=survey.rows,
        by_status=dict(sorted(survey.statuses.items())),
        left_out=dict(sorted(survey.left_out.items())),
        scores=scores,
        sets=sets,
        uncertain=_uncertain(scores | sets, network),
        groups={kind: {name: each.estimates() for name, each in found.items()} for kind, found in tally.groups.items()},
        histograms=tally.histograms,
        worst={name: heap.rows() for name, heap in tally.worst.items()},
        best={name: heap.rows() for name, heap in tally.best.items()},
    )


def _uncertain(scores: dict[str, Estimate | SetScore], network: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, each in scores.items():
        if reason := each.why_no_interval:
            found.setdefault(reason, []).append(name)
    if network and not scores_that_need(scores, "distance"):
        found["too_few_pictures"] = ["distance"]
    return dict(sorted(found.items()))


def history_group(length: int | None) -> str:
    """The group of a history of `length` clicks."""
    if length is None:
        return NOT_KNOWN
    return next((name for most, name in _LENGTHS if length <= most), LONGER)


def by_length(groups: dict[str, Any]) -> dict[str, Any]:
    """Groups of histories, the shortest first."""
    order = [*(name for _, name in _LENGTHS), LONGER, NOT_KNOWN]
    return {name: groups[name] for name in order if name in groups}


# -- first reading -------------------------------------------------------------------------------------------------------------


class _Survey:
    def __init__(self) -> None:
        self.rows = self.variants = 0
        self.statuses: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.groups = {kind: Counter[str]() for kind in GROUPS}
        self.ranges: dict[str, tuple[float, float]] = {}

    def count(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        self.variants = max(self.variants, 1 + (pc.max(batch["variant"]).as_py() or 0))
        self.statuses.update(batch["status"].to_pylist())
        self.left_out.update(batch["left_out"].flatten().to_pylist())
        for kind in GROUPS:
            self.groups[kind].update(_group_names(batch, kind))
        for name in ROW_SCORES:
            values = _finite(values_of(batch, [name])[:, 0])
            if len(values):
                low, high = self.ranges.get(name, (np.inf, -np.inf))
                self.ranges[name] = min(low, float(values.min())), max(high, float(values.max()))

    def kept(self, kind: str) -> list[str]:
        """The largest groups; equal ones by name."""
        ordered = sorted(self.groups[kind].items(), key=lambda item: (-item[1], item[0]))
        return [name for name, _ in ordered[:MOST_GROUPS]]


def _group_names(batch: pa.RecordBatch, kind: str) -> list[str]:
    if kind == "history_length":
        return [history_group(length) for length in batch[kind].to_pylist()]
    return [NOT_KNOWN if name is None else name for name in batch[kind].to_pylist()]


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


# -- second reading ------------------------------------------------------------------------------------------------------------


class _Tally:
    def __init__(self, survey: _Survey, resamples: int, seed: int):
        new = lambda: _Scores(resamples, seed)  # noqa: E731
        self.whole = new()
        self.kept = {kind: survey.kept(kind) for kind in GROUPS}
        self.groups = {kind: {name: new() for name in self._names(survey, kind)} for kind in GROUPS}
        self.histograms = {name: Histogram(*ends, np.zeros(BINS, np.int64)) for name, ends in survey.ranges.items()}
        sheets = [name for name in sheet_scores() if name in survey.ranges][:MOST_SHEETS]
        sheets += [PAINTED] if PAINTED in survey.ranges else []
        self.worst = {name: Extremes(-1, _SHOWN, SHEET_ROWS) for name in sheets}
        self.best = {name: Extremes(1, _SHOWN, SHEET_ROWS) for name in sheets}

    def _names(self, survey: _Survey, kind: str) -> list[str]:
        return self.kept[kind] + ([OTHER] if len(survey.groups[kind]) > MOST_GROUPS else [])

    def count(self, batch: pa.RecordBatch) -> None:
        users, values = np.asarray(batch["user_key"].to_pylist(), dtype=str), values_of(batch, ROW_SCORES)
        self.whole.add(users, values, batch["bleu_counts"])
        for kind, groups in self.groups.items():
            known = set(self.kept[kind])
            names = np.asarray([name if name in known else OTHER for name in _group_names(batch, kind)], dtype=str)
            for name in np.unique(names):
                here = names == name
                groups[str(name)].add(users[here], values[here], batch["bleu_counts"].filter(pa.array(here)))
        for name, histogram in self.histograms.items():
            found = _finite(values[:, ROW_SCORES.index(name)])
            histogram.counts += np.histogram(found, BINS, histogram.bounds)[0]
        for name in self.worst:
            column = values[:, ROW_SCORES.index(name)]
            self.worst[name].offer(batch, column)
            self.best[name].offer(batch, column)


class _Scores:
    """Scores of rows, and of their titles together."""

    def __init__(self, resamples: int, seed: int):
        self._rows, self._titles = ClusteredMeans(ROW_SCORES), CorpusBleu(resamples, seed)

    def add(self, users: np.ndarray, values: np.ndarray, bleu_counts: pa.ListArray) -> None:
        self._rows.add(users, values)
        there = bleu_counts.is_valid().to_numpy(zero_copy_only=False)
        self._titles.add(users[there], bleu_counts.flatten().to_numpy().reshape(-1, NUM_COUNTS))

    def estimates(self) -> dict[str, Estimate]:
        """By name, CORPUS_BLEU next to the mean of sentences."""
        found = self._rows.estimates()
        if titles := self._titles.estimate():
            found[CORPUS_BLEU] = titles
        return {name: _within_range(name, found[name]) for name in names_of("title", "all titles", "picture") if name in found}


def _within_range(name: str, each: Estimate) -> Estimate:
    """No interval of a share reaches below 0 or above 1: Student's t does not know what a score can be."""
    lowest, highest = find_score(name).range
    return each if each.low is None else each._replace(low=max(lowest, each.low), high=min(highest, each.high))
