"""The pictures that an evaluation kept as painted, before the product was pasted."""

from adgen.creatives import layout
from adgen.creatives.storage import Storage
from adgen.on_ray.rows import Row


def read_unpasted(storage: Storage, campaign: str, row: Row) -> bytes | None:
    """The painted picture of a manifest row (PNG); None where none was kept."""
    stored = storage.get(layout.unpasted_picture(campaign, row["pair_id"], row["fingerprint"])) if row["fingerprint"] else None
    return stored.data if stored else None
