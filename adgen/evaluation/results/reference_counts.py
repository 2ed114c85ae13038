"""What a table of references holds, before anything is scored against it: what is listed twice, and what its rows lack."""

from typing import NamedTuple

import duckdb

from adgen.local_cache import user_cache
from adgen.shop.inputs.tables import Inputs

_SETTINGS = {"memory_limit": "2GB", "threads": 1}
_COUNTS = r"""
    WITH seen AS (
        SELECT user_id, product_id, user_id IS NOT NULL AND product_id IS NOT NULL AS named,
            coalesce(image, '') <> '' AS shown, regexp_matches(coalesce(array_to_string(titles, ''), ''), '[^\s\p{Z}]') AS titled
        FROM stream)
    SELECT count(*), count(*) FILTER (NOT named),
        count(*) FILTER (named) - count(DISTINCT (user_id, product_id)) FILTER (named),
        count(*) FILTER (titled), count(*) FILTER (shown)
    FROM seen"""


class ReferenceCounts(NamedTuple):
    """Rows of the table."""

    rows: int
    without_ids: int
    """That name no user or no product: nothing can be scored against them."""
    duplicates: int
    """Of a pair that another row has, too: the pair is scored against the first."""
    with_titles: int
    """That hold a title which is not blank."""
    with_picture: int
    """That name a picture; whether it can be read is seen when it is compared with."""

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return self._asdict()

    @property
    def problems(self) -> dict[str, int]:
        """Those that there are, by name."""
        found = {
            "duplicates": self.duplicates,
            "without_ids": self.without_ids,
            "without_titles": self.rows - self.with_titles,
            "without_picture": self.rows - self.with_picture,
        }
        return {name: count for name, count in found.items() if count}


def count_references(inputs: Inputs) -> ReferenceCounts | None:
    """Of the inputs' references, read once as a stream; what does not fit into memory goes to disk. None: there is no table."""
    if "references" not in inputs.tables:
        return None
    with duckdb.connect(":memory:", config=_SETTINGS | {"temp_directory": str(user_cache("duckdb"))}) as base:
        base.register("stream", inputs["references"].reader(("user_id", "product_id", "image", "titles")))
        return ReferenceCounts(*base.execute(_COUNTS).fetchone())
