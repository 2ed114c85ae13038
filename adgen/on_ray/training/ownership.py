"""Who drives a training run: two jobs on one OUT would take turns at overwriting each other's checkpoints.

OUT/owner.json names the driver and counts its heartbeats (creatives/ownership.py). A driver that finds another's name
waits for a sign of life: where the document changes, it stops and names the other; where it does not, or names a dead
process of this machine, it takes over. A driver that was taken over finds out at its next beat.
"""

import contextlib
import math
from typing import Any, Self

from adgen.creatives.documents import parse_document
from adgen.creatives.ownership import (
    BEAT_SECONDS,
    PATIENCE_SECONDS,
    Owned,
    OwnerDocument,
    has_ended,
    new_owner,
    wait_for_silence,
)
from adgen.creatives.storage import Stored
from adgen.creatives.stores import open_storage
from adgen.errors import OwnedElsewhere, StoreError

OWNER_FILE = "owner.json"


class Ownership(Owned[OwnerDocument]):
    """Holds OUT while the block runs. `on_lost`: called from a thread with a message when another driver has taken the run
    over; `check` says so in this one."""

    def __init__(self, uri: str, patience_seconds: float = PATIENCE_SECONDS, beat_seconds: float = BEAT_SECONDS):
        storage = open_storage(uri)
        super().__init__(storage, OWNER_FILE, OwnerDocument(), None, new_owner(), storage.uri)
        self._patience_seconds = patience_seconds
        # A store that is away for a while stops no training: if somebody else comes meanwhile, the next beat says so.
        self._beating = self.beating(beat_seconds, math.inf)

    def __enter__(self) -> Self:
        """OwnedElsewhere when another driver is alive."""
        found = self.storage.get(OWNER_FILE)
        if not has_ended(_read(found).owner):
            look = lambda: {OWNER_FILE: self.storage.get(OWNER_FILE)}  # noqa: E731
            wait_for_silence(look, self._patience_seconds, lambda _, now: self._refuse(now))
        self.document, self._etag = _read(found), found.etag if found else None
        try:
            self.update(owner=self.owner)
        except OwnedElsewhere:
            self._refuse(self.storage.get(OWNER_FILE))
        self._beating.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self._beating.__exit__(None, None, None)
        with contextlib.suppress(StoreError):  # another one has it, or the store is away: both do without this
            self.update(owner=None)  # the next driver need not wait

    def _refuse(self, now: Stored | None) -> None:
        holder = _read(now).owner or "another driver that just let it go"
        raise OwnedElsewhere(f"{self.storage.uri} is driven by {holder}: wait for it, or stop it, or give another --out") from None


def _read(stored: Stored | None) -> OwnerDocument:
    """What the document says; one that nobody can read says nothing."""
    with contextlib.suppress(StoreError):
        return parse_document(OwnerDocument, stored.data if stored else b"{}", OWNER_FILE)
    return OwnerDocument()
