"""Which of a pair's variants comes first. Rank 0 is what consumers take unless they ask for more.

A rank is a function of the pair's manifest rows alone: whoever has them all, a planner that carries them or a worker that made the
last of them, gives them the same ranks. What is compared, in this order:

1. ok before rejected before failed;
2. title and picture of the model before a template or a plain background;
3. fewer gates that warn;
4. the mean of RANKING_SCORES, and the distance to what was ranked before: each next row is the one with the highest mean plus
   DISTANCE_WEIGHT times the distance to the nearest before it (maximal marginal relevance, Carbonell and Goldstein 1998), so that
   who takes two gets two that differ;
5. the lower variant.

A score that a row lacks, as rows of runs without variants do, counts as the mean of the pair's rows that have it.
"""

from collections.abc import Callable, Sequence
from math import dist, sqrt
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adgen.records import FAILED, OK, REJECTED, SOURCES

RANKING_SCORES: dict[str, Callable[[float], float]] = {
    "allowed_words": float,
    "product_inside": float,
    "style_agreement": lambda cosine: (1 + cosine) / 2,
}
"""Scores that need no reference, each on a scale from 0 to 1."""
DISTANCE_WEIGHT = 0.5
COLOUR = ("background_red", "background_green", "background_blue")
"""Mean of the background's channels, 0 to 255."""
_COLUMNS = ("pair_id", "variant", "status", "title", "gates", "scores", *SOURCES)
_STATUSES = (OK, REJECTED, FAILED)

Row = dict[str, Any]


def ranked(rows: pa.Table) -> pa.Table:
    """The table with the column `rank` of its rows, which hold all variants of each of their pairs."""
    ranks = [0] * rows.num_rows
    if pc.count_distinct(rows["pair_id"]).as_py() < rows.num_rows:
        places: dict[str, list[int]] = {}
        for place, pair in enumerate(rows["pair_id"].to_pylist()):
            places.setdefault(pair, []).append(place)
        several = [each for each in places.values() if len(each) > 1]
        found = iter(rows.select(_COLUMNS).take([place for each in several for place in each]).to_pylist())
        for each in several:
            for place, rank in zip(each, ranks_of([next(found) for _ in each]), strict=True):
                ranks[place] = rank
    index = rows.schema.get_field_index("rank")
    return rows.set_column(index, rows.schema.field(index), pa.array(ranks, pa.int32()))


def ranks_of(rows: Sequence[Row]) -> list[int]:
    """The ranks 0, 1, ... of one pair's rows."""
    rows = [row | {"gates": dict(row["gates"] or ()), "scores": dict(row["scores"] or ())} for row in rows]
    means = _means(rows)
    left, order = list(range(len(rows))), []
    while left:
        merit = {place: means[place] + DISTANCE_WEIGHT * _to_nearest(rows, place, order) for place in left}
        best = min(left, key=lambda place: (*_tier(rows[place]), -round(merit[place], 6), rows[place]["variant"]))
        order.append(best)
        left.remove(best)
    return [order.index(place) for place in range(len(rows))]


def _tier(row: Row) -> tuple[int, int, int]:
    substitutes = sum(row[source] not in (None, "model") for source in SOURCES)
    return _STATUSES.index(row["status"]), substitutes, sum(verdict.startswith("warn") for verdict in row["gates"].values())


def _means(rows: Sequence[Row]) -> list[float]:
    """Each row's mean of RANKING_SCORES, of those that any of the rows has."""
    columns = []
    for name, scaled in RANKING_SCORES.items():
        known = [scaled(row["scores"][name]) for row in rows if name in row["scores"]]
        if known:
            middle = sum(known) / len(known)
            columns.append([scaled(row["scores"][name]) if name in row["scores"] else middle for row in rows])
    return [sum(values) / len(columns) for values in zip(*columns, strict=True)] if columns else [0.0] * len(rows)


def _to_nearest(rows: Sequence[Row], place: int, others: Sequence[int]) -> float:
    return min((distance(rows[place], rows[other]) for other in others), default=0.0)


def distance(one: Row, other: Row) -> float:
    """How far two creatives of a pair are apart, 0 to 1: the mean of their titles' and their backgrounds' distance. Titles: 1 less
    the share of pairs of characters in common (Dice), which needs no words and so serves every language. Backgrounds: of their mean
    colours; left out where one of them is not known."""
    parts = [_title_distance(one["title"] or "", other["title"] or "")]
    colours = [[row["scores"][name] for name in COLOUR if name in row["scores"]] for row in (one, other)]
    if all(len(colour) == len(COLOUR) for colour in colours):
        parts.append(dist(*colours) / (255 * sqrt(len(COLOUR))))
    return sum(parts) / len(parts)


def _title_distance(one: str, other: str) -> float:
    if one == other:
        return 0.0
    a, b = ({*zip(f" {title}", f"{title} ", strict=True)} for title in (one.casefold(), other.casefold()))
    return 1 - 2 * len(a & b) / (len(a) + len(b))
