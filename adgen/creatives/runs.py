"""Who drives a run, and what state it is in.

Two documents decide. `driver.json` of the campaign names the run being driven: drivers that start at once both swap it,
and one wins. `run.json` carries the owner and a heartbeat: its owner swaps it again and again, so that an owner whose
run was taken over cannot write it any more, and finds out.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adgen.creatives import layout
from adgen.creatives.documents import DriverSlot, Plan, RunDocument, parse_document, utc_now
from adgen.creatives.storage import Storage, Stored, Taken
from adgen.errors import OwnedElsewhere, RunError, StoreError

BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 20.0


def new_owner() -> str:
    """A name for this driver that an operator can find: host, process and a random part."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def read_run(storage: Storage, campaign: str, run_id: str) -> RunDocument:
    """The run's document as consumers see it; StoreError if there is none."""
    key = layout.run_document(campaign, run_id)
    return parse_document(RunDocument, storage.read(key), storage.address(key))


def list_runs(storage: Storage, campaign: str) -> list[RunDocument]:
    """All runs of the campaign, newest first. Lists the store: for operators and jobs."""
    found = []
    for run_id in reversed(storage.children(layout.runs(campaign))):
        key = layout.run_document(campaign, run_id)
        if stored := storage.get(key):  # none: killed before the first write, or while a clean-up removed it
            found.append(parse_document(RunDocument, stored.data, storage.address(key)))
    return found


class Run:
    """A run held by this driver. Every change goes through `update`; any of them may raise OwnedElsewhere."""

    def __init__(self, storage: Storage, document: RunDocument, etag: str, owner: str, resumed: bool):
        self.storage = storage
        self.document = document
        self.owner = owner
        self.resumed = resumed
        self._etag = etag
        self._lock = threading.Lock()
        self._lost: StoreError | None = None

    @property
    def campaign(self) -> str:
        return self.document.campaign

    @property
    def run_id(self) -> str:
        return self.document.run_id

    def update(self, **changes: Any) -> None:
        """Write run.json with `changes` and the next heartbeat; OwnedElsewhere if another driver has the run."""
        with self._lock:
            self._raise_if_lost()
            if not self._try_update(changes):  # an earlier write of ours had arrived after all: build on it
                self._try_update(changes)

    def beat(self) -> None:
        """One heartbeat."""
        self.update()

    def check(self) -> None:
        """Raise what the heartbeat thread found, if it found anything: call it between shards."""
        with self._lock:
            self._raise_if_lost()

    @contextmanager
    def beating(self, every_seconds: float = BEAT_SECONDS, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
        """Beat from a thread while the block runs. A store that fails for `patience_seconds` means the run is lost."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat_until, args=(stop, every_seconds, patience_seconds), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def release(self, note: str = "") -> None:
        """Give the run up unfinished, so that the same command resumes it without waiting."""
        self.update(owner=None, note=note)

    def end(self, state: str, note: str = "") -> None:
        """End the run without publishing: HELD, FAILED, PARTIAL or ABANDONED."""
        if state not in ("HELD", "FAILED", "PARTIAL", "ABANDONED"):
            raise ValueError(f"{state}: a run ends without publishing as HELD, FAILED, PARTIAL or ABANDONED")
        self.update(state=state, note=note, owner=None, pointer="untouched")

    def _beat_until(self, stop: threading.Event, every_seconds: float, patience_seconds: float) -> None:
        last = time.monotonic()
        while not stop.wait(every_seconds):
            try:
                self.beat()
                last = time.monotonic()
            except OwnedElsewhere:
                return  # check() raises it in the driver
            except StoreError as error:
                if time.monotonic() - last > patience_seconds:
                    self._lost = error
                    return

    def _raise_if_lost(self) -> None:
        if self._lost:
            raise self._lost

    def _try_update(self, changes: dict[str, Any]) -> bool:
        """Whether the swap came through; False where the store held an earlier write of ours, which is now adopted."""
        beat = {"heartbeat": self.document.heartbeat + 1, "updated_at": utc_now()}
        document = self.document.model_copy(update=beat | changes)
        key = layout.run_document(self.campaign, self.run_id)
        try:
            self._etag = self.storage.swap_or_find(key, document.to_bytes(), self._etag)
            self.document = document
            return True
        except Taken:
            stored = self.storage.get(key)
            there = stored and parse_document(RunDocument, stored.data, self.storage.address(key))
            if there and there.owner == self.owner:
                self.document, self._etag = there, stored.etag
                return False
            holder = f"{there.owner or 'nobody'}, state {there.state}" if there else "nobody: it was removed"
            self._lost = OwnedElsewhere(
                f"run {self.run_id} of campaign {self.campaign} is now driven by {holder}; this driver stops"
            )
            raise self._lost from None


def start_or_resume(
    storage: Storage,
    campaign: str,
    resume_key: str,
    *,
    owner: str | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    **details: Any,
) -> Run:
    """The newest unfinished run with `resume_key` and a committed plan, taken over; else a new run with `details`.

    `details` are fields of RunDocument: settings, digests, versions, key_ids, base_run. Waits up to `patience_seconds`
    for a sign of life where a driver died; OwnedElsewhere names a living one. Unfinished runs without a plan become
    ABANDONED. A run that its gate holds counts as unfinished while nothing else was published: its shards are done, so it
    is only judged again.
    """
    owner = owner or new_owner()
    stored, slot = _read_slot(storage, campaign)
    runs = list_runs(storage, campaign)
    open_runs = [run for run in runs if run.unfinished]
    unplanned = [run for run in open_runs if storage.head(layout.plan_document(campaign, run.run_id)) is None]
    resumable = [run for run in open_runs if run.resume_key == resume_key and run not in unplanned]
    resumable = resumable or [run for run in runs if run.resume_key == resume_key and _is_held_still(storage, run)]
    watched = {run.run_id for run in [*unplanned, *resumable] if run.owner}
    if slot:
        driven = next((run for run in runs if run.run_id == slot.run_id), None)
        # No run.json yet is no sign of death: its driver may be between its first two writes.
        if driven is None or (driven.unfinished and driven.owner):
            watched.add(slot.run_id)
    _wait_for_silence(storage, campaign, watched, stored, patience_seconds)
    run_id = resumable[0].run_id if resumable else layout.new_run_id()
    _claim(storage, campaign, stored, DriverSlot(run_id=run_id, owner=owner, turn=slot.turn + 1 if slot else 1))
    for run in unplanned:
        _take_over(storage, run, owner).end("ABANDONED", "no plan was committed")
    if resumable:
        run = _take_over(storage, resumable[0], owner)
        if run.document.state == "HELD":
            run.update(state="RUNNING", gate=None)
        return run
    now = utc_now()
    document = RunDocument(
        campaign=campaign, run_id=run_id, resume_key=resume_key, owner=owner, created_at=now, updated_at=now, **details
    )
    etag = storage.swap_or_find(layout.run_document(campaign, run_id), document.to_bytes(), None)
    return Run(storage, document, etag, owner, resumed=False)


def _is_held_still(storage: Storage, run: RunDocument) -> bool:
    """Whether its gate holds the run, and the pointer is the one that the run was planned against: it could be published."""
    if run.state != "HELD" or run.gate is None:
        return False
    plan = storage.get(layout.plan_document(run.campaign, run.run_id))
    pointer = storage.get(layout.pointer(run.campaign))
    if plan is None:
        return False
    planned = parse_document(Plan, plan.data, storage.address(layout.plan_document(run.campaign, run.run_id)))
    return planned.pointer_etag == (pointer and pointer.etag)


def _read_slot(storage: Storage, campaign: str) -> tuple[Stored | None, DriverSlot | None]:
    key = layout.driver_slot(campaign)
    stored = storage.get(key)
    return stored, stored and parse_document(DriverSlot, stored.data, storage.address(key))


def _wait_for_silence(storage: Storage, campaign: str, run_ids: set[str], slot: Stored | None, patience_seconds: float) -> None:
    """Return when none of the runs moved for `patience_seconds`; OwnedElsewhere as soon as one does."""
    if not run_ids:
        return
    before = {run_id: storage.get(layout.run_document(campaign, run_id)) for run_id in run_ids}
    deadline = time.monotonic() + patience_seconds
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, max(0.05, patience_seconds / 20)))
        _raise_if_claimed(storage, campaign, slot)
        for run_id, old in before.items():
            key = layout.run_document(campaign, run_id)
            new = storage.get(key)
            if new and (old is None or new.etag != old.etag):
                _raise_owned(campaign, parse_document(RunDocument, new.data, storage.address(key)))


def _raise_if_claimed(storage: Storage, campaign: str, slot: Stored | None) -> None:
    now, holder = _read_slot(storage, campaign)
    if holder and (slot is None or now.etag != slot.etag):
        _raise_owned(campaign, holder)


def _raise_owned(campaign: str, holder: RunDocument | DriverSlot) -> None:
    raise OwnedElsewhere(
        f"campaign {campaign}: run {holder.run_id} is driven by {holder.owner or 'another driver that just let it go'}; "
        "wait for it, or stop it and start again"
    )


def _claim(storage: Storage, campaign: str, stored: Stored | None, slot: DriverSlot) -> None:
    try:
        storage.swap_or_find(layout.driver_slot(campaign), slot.to_bytes(), stored.etag if stored else None)
    except Taken:
        _raise_if_claimed(storage, campaign, stored)
        raise


def _take_over(storage: Storage, seen: RunDocument, owner: str) -> Run:
    """Make `owner` the owner of the run if it still is what was seen."""
    key = layout.run_document(seen.campaign, seen.run_id)
    stored = storage.get(key)
    if stored is None:
        raise RunError(f"{storage.address(key)}: was removed meanwhile; start again")
    there = parse_document(RunDocument, stored.data, storage.address(key))
    if (there.owner, there.heartbeat) != (seen.owner, seen.heartbeat):
        _raise_owned(seen.campaign, there)
    run = Run(storage, there, stored.etag, owner, resumed=True)
    run.update(owner=owner, note="")
    return run
