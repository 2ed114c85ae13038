"""Who drives a training run: two jobs on one OUT would take turns at overwriting each other's checkpoints.

OUT/owner.json names the driver and counts its heartbeats; every change is a swap against what was read. A driver that
finds another's name waits for a sign of life: where the document moves, it stops and names the other; where it stands
still, or names a dead process of this machine, it takes over. A driver that was taken over finds out at its next beat.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from adgen.creatives.runs import BEAT_SECONDS, PATIENCE_SECONDS, new_owner
from adgen.creatives.storage import Stored, Taken
from adgen.creatives.stores import open_storage
from adgen.errors import OwnedElsewhere, StoreError

OWNER_FILE = "owner.json"


class Ownership:
    """Holds OUT while the block runs. `tell`: called from a thread with a message when another driver has taken the run over;
    `check` says so in this one."""

    def __init__(self, uri: str, patience_seconds: float = PATIENCE_SECONDS, beat_seconds: float = BEAT_SECONDS):
        self.storage = open_storage(uri)
        self.me, self.patience_seconds, self.beat_seconds = new_owner(), patience_seconds, beat_seconds
        self.tell: Callable[[str], Any] = lambda message: None
        self._lost: str | None = None
        self._stop, self._beats = threading.Event(), 0
        self._thread = threading.Thread(target=self._beat_on, daemon=True)

    def __enter__(self) -> Self:
        """OwnedElsewhere when another driver is alive."""
        found = self.storage.get(OWNER_FILE)
        if found is not None and not _ended(_read(found)):
            self._wait_for_silence(found)
        self._beats = _read(found).get("beats", 0) if found else 0
        self._etag = found.etag if found else None
        try:
            self._write(self.me)
        except Taken:
            self._refuse(self.storage.get(OWNER_FILE))
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(StoreError):  # another one has it, or the store is away: both do without this
            self._write(None)  # the next driver need not wait

    def check(self) -> None:
        """OwnedElsewhere when the run was taken over."""
        if self._lost:
            raise OwnedElsewhere(self._lost)

    def _wait_for_silence(self, found: Stored) -> None:
        deadline = time.monotonic() + self.patience_seconds
        while time.monotonic() < deadline:
            time.sleep(max(0.05, self.patience_seconds / 20))
            now = self.storage.get(OWNER_FILE)
            if now is None or now.etag != found.etag:
                self._refuse(now)

    def _refuse(self, now: Stored | None) -> None:
        holder = (_read(now).get("owner") if now else None) or "another driver that just let it go"
        raise OwnedElsewhere(f"{self.storage.uri} is driven by {holder}: wait for it, or stop it, or give another --out")

    def _write(self, owner: str | None) -> None:
        """Taken when another driver wrote. An earlier write of ours that landed with its answer lost is gone on from."""
        try:
            self._swap(owner)
        except Taken:
            found = self.storage.get(OWNER_FILE)
            if found is None or _read(found).get("writer") != self.me:
                raise
            self._etag = found.etag
            self._swap(owner)

    def _swap(self, owner: str | None) -> None:
        self._beats += 1  # whether it lands or not: no two of our documents are the same
        data = json.dumps({"owner": owner, "beats": self._beats, "writer": self.me}).encode()
        self._etag = self.storage.swap_or_find(OWNER_FILE, data, self._etag)

    def _beat_on(self) -> None:
        while not self._stop.wait(self.beat_seconds):
            try:
                self._write(self.me)
            except Taken:
                self._lost = f"{self.storage.uri} was taken over by another driver; this one stops"
                self.tell(self._lost)
                return
            except StoreError:
                continue  # a store that is away for a while: if somebody else comes meanwhile, the next beat says so


def _read(stored: Stored) -> dict[str, Any]:
    try:
        return dict(json.loads(stored.data))
    except ValueError:
        return {}


def _ended(document: dict[str, Any]) -> bool:
    """Whether its driver let go, or was a process of this machine that is no more."""
    owner = document.get("owner")
    if owner is None:
        return True
    host, _, rest = str(owner).rpartition(":")[0].rpartition(":")
    if host != socket.gethostname() or not rest.isdigit():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
