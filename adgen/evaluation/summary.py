"""What the rows of an evaluation say together: means with intervals, by group, distributions, best and worst.

Rows are read from Parquet, twice, batch by batch: first what groups and ranges there are, then everything else, user by user.
Memory does not grow with the rows. A number that there is not enough to tell is left out or None, and what rows lack is
counted.
"""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from adgen.evaluation.creative_scores import ROW_SCORES
from adgen.evaluation.statistics import RESAMPLES, Bootstrap, Estimate
from adgen.evaluation.stored_rows import read_rows, rows_by_user

GROUPS = ("locale", "category", "history_length")
MOST_GROUPS = 20  # of a kind; rows of the rarer ones are counted as OTHER
NOT_KNOWN, OTHER = "not known", "all others"
BINS = 30
SHEET_SCORES = ("pbs_history_margin", "pbs_reference", "product_iou", "allowed_words")
SHEET_ROWS = 8
_SHOWN = ("pair_id", "variant", "product_id", "title", "uri", "locale", "status")
_LENGTHS = ((0, "0"), (3, "1 to 3"), (6, "4 to 6"), (10, "7 to 10"))


@dataclass
class Histogram:
    """How often a score's values lie where: `counts` in equal bins from `low` to `high`."""

    low: float
    high: float
    counts: np.ndarray


@dataclass
class Summary:
    """An evaluation in numbers."""

    rows: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows by why they lack a score; a row may have several reasons."""
    scores: dict[str, Estimate] = field(default_factory=dict)
    groups: dict[str, dict[str, dict[str, Estimate]]] = field(default_factory=dict)
    """Scores by kind of group and group."""
    histograms: dict[str, Histogram] = field(default_factory=dict)
    worst: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By score, rows with their `value`, the worst first."""
    best: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: without distributions and single rows."""
        numbers = lambda scores: {name: each.as_dict() for name, each in scores.items()}  # noqa: E731
        groups = {kind: {name: numbers(scores) for name, scores in found.items()} for kind, found in self.groups.items()}
        counts = {"rows": self.rows, "by_status": self.by_status, "left_out": self.left_out}
        return counts | {"scores": numbers(self.scores), "groups": groups}


def summarize(folder: Path, resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """The summary of the evaluation in `folder`. SettingsError: there is none, or another version's."""
    survey = _Survey()
    for batch in read_rows(folder, ["status", "left_out", *GROUPS, *ROW_SCORES]):
        survey.count(batch)
    tally = _Tally(survey, resamples, seed)
    for batch in rows_by_user(folder, [*dict.fromkeys((*_SHOWN, "user_key", *GROUPS)), *ROW_SCORES]):
        tally.count(batch)
    return Summary(
        rows=survey.rows,
        by_status=dict(sorted(survey.statuses.items())),
        left_out=dict(sorted(survey.left_out.items())),
        scores=tally.whole.estimates(),
        groups={kind: {name: each.estimates() for name, each in found.items()} for kind, found in tally.groups.items()},
        histograms=tally.histograms,
        worst={name: heap.rows() for name, heap in tally.worst.items()},
        best={name: heap.rows() for name, heap in tally.best.items()},
    )


def history_group(length: int | None) -> str:
    """The group of a history of so many clicks."""
    if length is None:
        return NOT_KNOWN
    return next((name for most, name in _LENGTHS if length <= most), "more than 10")


# -- first reading -------------------------------------------------------------------------------------------------------------


class _Survey:
    def __init__(self) -> None:
        self.rows = 0
        self.statuses: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.groups = {kind: Counter[str]() for kind in GROUPS}
        self.ranges: dict[str, tuple[float, float]] = {}

    def count(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        self.statuses.update(batch["status"].to_pylist())
        self.left_out.update(batch["left_out"].flatten().to_pylist())
        for kind in GROUPS:
            self.groups[kind].update(_group_names(batch, kind))
        for name in ROW_SCORES:
            values = _finite(_values(batch, [name])[:, 0])
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


def _values(batch: pa.RecordBatch, names: list[str] | tuple[str, ...]) -> np.ndarray:
    """(n, len(names)), NaN for null."""
    columns = [batch[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in names]
    return np.stack(columns, axis=1) if columns else np.zeros((batch.num_rows, 0))


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


# -- second reading ------------------------------------------------------------------------------------------------------------


class _Tally:
    def __init__(self, survey: _Survey, resamples: int, seed: int):
        new = lambda: Bootstrap(ROW_SCORES, resamples, seed)  # noqa: E731
        self.whole = new()
        self.kept = {kind: survey.kept(kind) for kind in GROUPS}
        self.groups = {kind: {name: new() for name in self._names(survey, kind)} for kind in GROUPS}
        self.histograms = {name: Histogram(*ends, np.zeros(BINS, np.int64)) for name, ends in survey.ranges.items()}
        sheets = [name for name in SHEET_SCORES if name in survey.ranges][:2]
        self.worst = {name: _Extremes(-1) for name in sheets}
        self.best = {name: _Extremes(1) for name in sheets}

    def _names(self, survey: _Survey, kind: str) -> list[str]:
        return self.kept[kind] + ([OTHER] if len(survey.groups[kind]) > MOST_GROUPS else [])

    def count(self, batch: pa.RecordBatch) -> None:
        users, values = np.asarray(batch["user_key"].to_pylist(), dtype=str), _values(batch, ROW_SCORES)
        self.whole.add(users, values)
        for kind, groups in self.groups.items():
            known = set(self.kept[kind])
            names = np.asarray([name if name in known else OTHER for name in _group_names(batch, kind)], dtype=str)
            for name in np.unique(names):
                groups[str(name)].add(users[names == name], values[names == name])
        for name, histogram in self.histograms.items():
            found = _finite(values[:, ROW_SCORES.index(name)])
            histogram.counts += np.histogram(found, BINS, _bounds(histogram))[0]
        for name in self.worst:
            column = values[:, ROW_SCORES.index(name)]
            self.worst[name].offer(batch, column)
            self.best[name].offer(batch, column)


def _bounds(histogram: Histogram) -> tuple[float, float]:
    return (histogram.low, histogram.high) if histogram.high > histogram.low else (histogram.low - 0.5, histogram.high + 0.5)


class _Extremes:
    """The SHEET_ROWS rows with the largest (sign 1) or smallest (sign -1) values, of rows that have a picture."""

    def __init__(self, sign: int):
        self.sign = sign
        self._heap: list[tuple[float, str, int, dict[str, Any]]] = []
        self._numbers = count()

    def offer(self, batch: pa.RecordBatch, values: np.ndarray) -> None:
        usable = np.flatnonzero(np.isfinite(values) & batch["uri"].is_valid().to_numpy(zero_copy_only=False))
        order = usable[np.argsort(-self.sign * values[usable], kind="stable")]
        for index in order[:SHEET_ROWS].tolist():
            row = {name: batch[name][index].as_py() for name in _SHOWN} | {"value": float(values[index])}
            heapq.heappush(self._heap, (self.sign * row["value"], row["pair_id"], next(self._numbers), row))
            if len(self._heap) > SHEET_ROWS:
                heapq.heappop(self._heap)

    def rows(self) -> list[dict[str, Any]]:
        """The most extreme first."""
        return [row for *_, row in sorted(self._heap, reverse=True)]
