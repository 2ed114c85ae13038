"""What writes a creative's picture to the store, as an object named by its content: written once, shared by all runs and campaigns.

The bytes come from adgen/finishing/encode.py; the caller is adgen/on_ray/refresh/commit.py.
"""

import hashlib
import time
from dataclasses import dataclass

from adgen.creatives import layout
from adgen.creatives.storage import Storage, Taken

# Clean-up deletes an unnamed object only when it is older than two runs, and a run counts as a day at least
# (cleanup.py). An object found this old is therefore written again before a row names it.
REFRESH_AFTER_SECONDS = 12 * 3600.0


@dataclass(frozen=True)
class ObjectReference:
    """What a manifest row says of an object; `uri` is relative to the store's root."""

    uri: str
    sha256: str
    bytes: int


def put_object(
    storage: Storage,
    data: bytes,
    extension: str,
    content_type: str | None = None,
    refresh_after_seconds: float = REFRESH_AFTER_SECONDS,
) -> ObjectReference:
    """Store `data` under its hash if it is not there yet; where to find it.

    An object that is there and old is written again: it may belong to no kept run, and clean-up goes by age.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    key = layout.object_key(sha256, extension)
    try:
        storage.create(key, data, content_type)
    except Taken:
        there = storage.head(key)
        if there is None or there.size != len(data) or time.time() - there.modified > refresh_after_seconds:
            storage.put(key, data, content_type)
    return ObjectReference(key, sha256, len(data))
