"""What the base run holds of a bucket's pairs, and its rows as tonight's run carries them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from adgen.shop.plan.buckets import PUBLISHED


class Kept(NamedTuple):
    """A published row that stays."""

    index: int
    """Of the row in the bucket."""
    user_key: str
    """Tonight's."""
    stale: bool


class Published:
    """The base run's rows of a bucket, by pair and variant."""

    def __init__(self, rows: pa.Table, base_run: str | None):
        self._rows, self._base_run = rows.select(PUBLISHED.names), base_run
        names = ("pair_id", "variant", "status", "fingerprint", "attempt", "title", "title_source")
        found = enumerate(rows.select(names).to_pylist())
        self._by_key = {(row["pair_id"], row["variant"]): row | {"index": index} for index, row in found}

    def find(self, pair: str, variant: int) -> dict[str, Any] | None:
        """Status, fingerprint, attempt, title and title_source of a row, and its `index`; None where there is none."""
        return self._by_key.get((pair, variant))

    def carry(self, kept: Sequence[Kept]) -> pa.Table:
        """The rows as they were, but for whose they are now called and how fresh they are."""
        rows = self._rows.take(pa.array([each.index for each in kept], pa.int64()))
        origins = pc.coalesce(rows["carried_from"], pa.scalar(self._base_run, pa.string()))  # the run that made it
        user_keys, stale = [each.user_key for each in kept], [each.stale for each in kept]
        changed = {"user_key": pa.array(user_keys, pa.string()), "carried_from": origins, "stale": pa.array(stale, pa.bool_())}
        for name, values in changed.items():
            rows = rows.set_column(rows.schema.get_field_index(name), PUBLISHED.field(name), values)
        return rows.cast(PUBLISHED)
