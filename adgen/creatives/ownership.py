"""Who drives something: one driver at a time owns a document, and whoever lost it finds out at the next write.

The document carries its owner and a heartbeat. Every write is a swap against the last one, so an owner whose document
was taken over can write it no more. A newcomer watches the document: one that changes has a living owner, who is named;
one that stands still is taken over. Runs of a campaign and training runs both work like this.
"""

import contextlib
import hashlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from adgen.creatives.documents import Document, parse_document, utc_now
from adgen.creatives.storage import Storage, Stored, Taken
from adgen.errors import OwnedElsewhere, StoreError

BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 20.0
_TRIES = 3

log = logging.getLogger(__name__)
D = TypeVar("D", bound=Document)


class OwnerDocument(Document):
    """The least that an owned document says."""

    owner: str | None = None
    heartbeat: int = 0
    updated_at: datetime | None = None


class Owned(Generic[D]):
    """A document that this driver owns: of any kind with the fields of OwnerDocument. Any write may raise OwnedElsewhere.

    `what` names it in messages; `on_lost` is called, from the heartbeat's thread, with the message when it was taken over.
    """

    def __init__(self, storage: Storage, key: str, document: D, etag: str | None, owner: str, what: str):
        self.storage, self.key, self.document, self.owner, self.what = storage, key, document, owner, what
        self.on_lost: Callable[[str], Any] = lambda message: None
        self._etag = etag
        self._sent: set[bytes] = set()  # writes since the last one that is known to have landed
        self._lock = threading.Lock()
        self._lost: StoreError | None = None

    def update(self, **changes: Any) -> None:
        """Write the document with `changes` and the next heartbeat.

        OwnedElsewhere if another driver has it; StoreError if the store refuses the write although nobody else wrote.
        """
        with self._lock:
            self._raise_if_lost()
            for _ in range(_TRIES):  # more than once where an earlier write of ours had arrived after all: build on it
                if self._try_update(changes):
                    return
            raise StoreError(f"{self.storage.address(self.key)}: refuses every write, and nobody else wrote it; try again later")

    def beat(self) -> None:
        """One heartbeat."""
        self.update()

    def check(self) -> None:
        """Raise what the heartbeat's thread found, if it found anything: call it between pieces of work."""
        with self._lock:
            self._raise_if_lost()

    @contextlib.contextmanager
    def beating(self, every_seconds: float = BEAT_SECONDS, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
        """Beat from a thread while the block runs. A store that fails for `patience_seconds` means that the document is lost."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat_until, args=(stop, every_seconds, patience_seconds), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _beat_until(self, stop: threading.Event, every_seconds: float, patience_seconds: float) -> None:
        last = time.monotonic()
        while not stop.wait(every_seconds):
            try:
                self.beat()
                last = time.monotonic()
            except OwnedElsewhere as error:
                self.on_lost(str(error))  # check() raises it in the driver
                return
            except Exception as error:  # also no file handle left, or a disk that is full: a thread that dies says nothing
                silent = time.monotonic() - last
                log.warning("%s: no heartbeat for %.0f s: %s", self.what, silent, error)
                if silent > patience_seconds:
                    self._lost = StoreError(f"{self.what}: no heartbeat for {silent:.0f} s: {error}")
                    return

    def _raise_if_lost(self) -> None:
        if self._lost:
            raise self._lost

    def _try_update(self, changes: dict[str, Any]) -> bool:
        """Whether the swap came through; False where the store holds what it held, or an earlier write of ours."""
        beat = {"heartbeat": self.document.heartbeat + 1, "updated_at": utc_now()}
        document = self.document.model_copy(update=beat | changes)
        self._sent.add(document.to_bytes())
        try:
            self._etag = self.storage.swap_or_find(self.key, document.to_bytes(), self._etag)
        except Taken:
            self._adopt_or_lose(self.storage.get(self.key))
            return False
        self.document = document
        self._sent.clear()
        return True

    def _adopt_or_lose(self, stored: Stored | None) -> None:
        if (stored.etag if stored else None) == self._etag:
            return
        there = stored and parse_document(type(self.document), stored.data, self.storage.address(self.key))
        if there and stored.data in self._sent:
            self.document, self._etag = there, stored.etag
            return
        state = getattr(there, "state", None)
        holder = f"{there.owner or 'nobody'}{f', state {state}' if state else ''}" if there else "nobody: it was removed"
        self._lost = OwnedElsewhere(f"{self.what} is now driven by {holder}; this driver stops")
        raise self._lost from None


def new_owner() -> str:
    """A name for this driver that an operator can find: host, process, and a part that no other process has."""
    return f"{socket.gethostname()}:{os.getpid()}:{_process_space()}{uuid.uuid4().hex[:8]}"


def has_ended(owner: str | None) -> bool:
    """Whether the driver let go, or was a process of this machine, as this one sees it, that is no more."""
    if owner is None:
        return True
    rest, _, tag = owner.rpartition(":")
    host, _, process = rest.rpartition(":")
    if host != socket.gethostname() or not process.isdigit() or tag[:-8] != _process_space():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def wait_for_silence(
    look: Callable[[], dict[str, Stored | None]], patience_seconds: float, refuse: Callable[[str, Stored], Any]
) -> None:
    """Return when none of the documents that `look` reads by key changed for `patience_seconds`.

    `refuse` gets the first that does, and raises OwnedElsewhere. Returns at once where there are none.
    """
    before, deadline = look(), time.monotonic() + patience_seconds
    while before and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, max(0.05, patience_seconds / 20)))
        for key, now in look().items():
            if now and (before[key] is None or now.etag != before[key].etag):
                refuse(key, now)


def _process_space() -> str:
    """Four hex digits that differ where the same process number means another process: containers of one host."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(str(Path("/proc/self/ns/pid").readlink()).encode()).hexdigest()[:4]
    return "0000"
