"""Rows of a run chosen without reading it: places spread over the plan, and whose clicks stand for those of another user."""

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

from adgen.creatives.documents import PlanPart
from adgen.creatives.journal import Journal
from adgen.errors import StoreError
from adgen.evaluation.scoring.other_users import PANEL, OtherUser
from adgen.on_ray.rows import Row
from adgen.records import unit_interval

_THREADS = 16  # a place is most often in a part of its own: a few round trips each

Places = dict[int, list[int]]
"""Numbers of plan parts -> places of rows within them."""


def spread_places(parts: Sequence[PlanPart], size: int, *key: str) -> list[tuple[int, int]]:
    """At most `size` rows as (part, place within it), evenly spread over all rows from a start that `key` decides. How the rows
    are cut into parts does not matter: the same key chooses the same rows."""
    ends = list(accumulate(part.rows for part in parts))
    total = ends[-1] if ends else 0
    count = min(size, total)
    start = unit_interval(*key)
    found = []
    for number in range(count):
        place = int((number + start) * total / count)
        part = bisect_right(ends, place)
        found.append((parts[part].index, place - (ends[part] - parts[part].rows)))
    return found


def by_part(places: Sequence[tuple[int, int]]) -> Places:
    """Grouped, in the order of their first place."""
    grouped: Places = {}
    for part, place in places:
        grouped.setdefault(part, []).append(place)
    return grouped


def journal_rows(journal: Journal, index: int, offsets: Sequence[int]) -> list[Row]:
    """Manifest rows of a shard (`offsets` of it; none is all) with `user_id` and `history_ids` of their lineage; both None where
    that is gone."""
    table = journal.read_part(index)
    rows = (table.take(list(offsets)) if len(offsets) else table).to_pylist()
    try:
        lineage = journal.read_lineage(index)
    except StoreError:
        lineage = None
    known = {} if lineage is None else {(each["pair_id"], each["variant"]): each for each in lineage.to_pylist()}
    for row in rows:
        there = known.get((row["pair_id"], row["variant"]))
        row["user_id"] = there and there["user_id"]
        row["history_ids"] = None if there is None else there["history_ids"] or []
    return rows


def read_panel(journal: Journal) -> tuple[OtherUser, ...]:
    """The run's panel: of rows all over its plan, the user's key and the clicks of the prompt. The same for every worker, sample
    and evaluation of the run; a row without clicks keeps its seat, so that one which is erased moves nobody else's."""
    places = by_part(spread_places(journal.read_plan().parts, PANEL, "strangers"))
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda item: journal_rows(journal, *item), places.items())
        return tuple(OtherUser(row["user_key"], tuple(row["history_ids"] or ())) for rows in found for row in rows)
