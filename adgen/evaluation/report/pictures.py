"""Pictures of creatives as a page shows them, from the stores that hold them."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from adgen.creatives import layout
from adgen.creatives.storage import Storage
from adgen.errors import StoreError
from adgen.finishing.contact_sheet import thumbnail

PICTURE_SIDE = 280  # pixels: twice what the page shows


class StoredPictures:
    """Of an evaluation's rows: each seed's creatives lie in a store of their own."""

    def __init__(self, storages: Sequence[Storage]):
        self.storages = storages

    def image(self, row: Mapping[str, Any], alt: str = "creative") -> str:
        """HTML of the picture of a row (`uri`, `variant`), or of the gap where there is none."""
        picture = self._read(row)
        if picture is None:
            return '<div class="gap">no picture</div>'
        return f'<img src="data:image/webp;base64,{b64encode(picture).decode()}" alt="{alt}" loading="lazy">'

    def _read(self, row: Mapping[str, Any]) -> bytes | None:
        if not row["uri"] or not layout.object_hash(row["uri"]) or row["variant"] >= len(self.storages):
            return None
        try:
            stored = self.storages[row["variant"]].get(row["uri"])
        except StoreError:
            return None
        return thumbnail(stored.data, PICTURE_SIDE) if stored else None
