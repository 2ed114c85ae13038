"""Pictures of creatives as a page shows them, from the stores that hold them."""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adgen.creatives import layout
from adgen.creatives.names import own_entries
from adgen.creatives.storage import Storage
from adgen.errors import StoreError
from adgen.finishing.contact_sheet import thumbnail

PICTURE_SIDE = 280  # pixels: twice what the page shows


class StoredPictures:
    """Of an evaluation's rows: each seed's creatives lie in a store of their own."""

    def __init__(self, storages: Sequence[Storage], campaign: str = ""):
        """campaign: whose painted pictures are looked for."""
        self.storages, self.campaign = storages, campaign

    def creative(self, row: Mapping[str, Any]) -> str:
        """HTML of the picture of a row (`uri`, `variant`), or of the gap where there is none."""
        key = row["uri"] if row["uri"] and layout.object_hash(row["uri"]) else None
        return _html(self._read(row["variant"], lambda storage: key), "creative")

    def painted(self, row: Mapping[str, Any]) -> str:
        """The same of what the model painted before the product was pasted (`pair_id`, `variant`)."""
        prefix = layout.unpasted_pictures(self.campaign, row["pair_id"])
        return _html(self._read(row["variant"], lambda storage: _newest(storage, prefix)), "before the product was pasted")

    def _read(self, variant: int, key_in: Callable[[Storage], str | None]) -> bytes | None:
        if variant >= len(self.storages):
            return None
        storage = self.storages[variant]
        try:
            stored = storage.get(key) if (key := key_in(storage)) else None
        except StoreError:
            return None
        return thumbnail(stored.data, PICTURE_SIDE) if stored else None


def _newest(storage: Storage, prefix: str) -> str | None:
    """Of several fingerprints of a pair the one that was written last."""
    entries = sorted(own_entries(storage, prefix), key=lambda entry: entry.modified)
    return entries[-1].key if entries else None


def _html(picture: bytes | None, alt: str) -> str:
    if picture is None:
        return '<div class="gap">no picture</div>'
    return f'<img src="data:image/webp;base64,{b64encode(picture).decode()}" alt="{alt}" loading="lazy">'
