"""Which objects a manifest row names, and whether an object is what the row says."""

import hashlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from adgen.creatives import layout
from adgen.creatives.storage import Storage

# What one needs of a row to know its objects.
COLUMNS = ("uri", "sha256", "bytes", "renditions")

MOST_BYTES = 2**28
"""No more of an object is read into memory, whatever its row says."""


class Reference(NamedTuple):
    """An object as a row names it."""

    uri: str
    sha256: str | None
    bytes: int | None

    @property
    def is_well_formed(self) -> bool:
        """Whether the uri is an object's key, and the one that belongs to the hash. Ask before using it as a path."""
        return self.sha256 is not None and layout.object_hash(self.uri) == self.sha256


def references_of(row: dict[str, Any]) -> Iterator[Reference]:
    """The row's picture and its renditions."""
    for holder in (row, *(row["renditions"] or ())):
        if holder["uri"] is not None:
            yield Reference(holder["uri"], holder["sha256"], holder["bytes"])


def is_content(data: bytes, reference: Reference) -> bool:
    """Whether `data` has the size and the hash that the row says."""
    return len(data) == reference.bytes and hashlib.sha256(data).hexdigest() == reference.sha256


Outcome = Literal["ok", "missing", "mismatched"]


def inspect(storage: Storage, reference: Reference) -> tuple[Outcome, bytes]:
    """Read the object and compare it with the row; its bytes, which are empty unless it is ok."""
    if not reference.is_well_formed:
        return "mismatched", b""
    piece = storage.get_range(reference.uri, 0, min(reference.bytes or 0, MOST_BYTES) + 1)
    if piece is None:
        return "missing", b""
    return ("ok", piece.data) if is_content(piece.data, reference) else ("mismatched", b"")
