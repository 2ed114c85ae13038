"""Who drives a run, and what state it is in.

Two documents decide. `driver.json` of the campaign names the run being driven: drivers that start at once both swap it,
and one wins. `run.json` is owned by its driver (ownership.py). Whoever claims a campaign ends its other unfinished runs.
"""

import time
from typing import Any, NamedTuple

from adgen.creatives import layout
from adgen.creatives.documents import DriverSlot, Plan, Pointer, RunDocument, parse_document, utc_now
from adgen.creatives.names import run_ids
from adgen.creatives.ownership import PATIENCE_SECONDS, Owned, has_ended, new_owner, wait_for_silence
from adgen.creatives.storage import Storage, Stored, Taken
from adgen.errors import OwnedElsewhere, RunError


def read_run(storage: Storage, campaign: str, run_id: str) -> RunDocument:
    """The run's document as consumers see it; StoreError if there is none."""
    key = layout.run_document(campaign, run_id)
    return parse_document(RunDocument, storage.read(key), storage.address(key))


def list_runs(storage: Storage, campaign: str) -> list[RunDocument]:
    """All runs of the campaign, newest first. Lists the store: for operators and jobs."""
    found = []
    for run_id in reversed(run_ids(storage, layout.runs(campaign))):
        key = layout.run_document(campaign, run_id)
        if stored := storage.get(key):  # none: killed before the first write, or while a clean-up removed it
            found.append(parse_document(RunDocument, stored.data, storage.address(key)))
    return found


def living_runs(storage: Storage, runs: list[RunDocument], patience_seconds: float) -> set[str]:
    """Ids of the unfinished runs whose heartbeat moves within `patience_seconds`; returns as soon as all are known to."""
    watched = {run.run_id: run for run in runs if run.unfinished and not has_ended(run.owner)}
    deadline, alive = time.monotonic() + patience_seconds, set()
    while set(watched) - alive and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, max(0.05, patience_seconds / 20)))
        for run in watched.values():
            stored = storage.get(layout.run_document(run.campaign, run.run_id))
            now = stored and parse_document(RunDocument, stored.data, storage.address(run.run_id))
            if now and (now.owner, now.heartbeat) != (run.owner, run.heartbeat):
                alive.add(run.run_id)
    return alive


class Run(Owned[RunDocument]):
    """A run held by this driver. Every change goes through `update`; any of them may raise OwnedElsewhere."""

    def __init__(self, storage: Storage, document: RunDocument, etag: str, owner: str, resumed: bool):
        key = layout.run_document(document.campaign, document.run_id)
        super().__init__(storage, key, document, etag, owner, f"run {document.run_id} of campaign {document.campaign}")
        self.resumed = resumed

    @property
    def campaign(self) -> str:
        return self.document.campaign

    @property
    def run_id(self) -> str:
        return self.document.run_id

    def release(self, note: str = "") -> None:
        """Give the run up unfinished, so that the same command resumes it without waiting."""
        self.update(owner=None, note=note)

    def end(self, state: str, note: str = "") -> None:
        """End the run without publishing: HELD, FAILED, PARTIAL or ABANDONED."""
        if state not in ("HELD", "FAILED", "PARTIAL", "ABANDONED"):
            raise ValueError(f"{state}: a run ends without publishing as HELD, FAILED, PARTIAL or ABANDONED")
        self.update(state=state, note=note, owner=None, pointer="untouched")


def start_or_resume(
    storage: Storage,
    campaign: str,
    resume_key: str,
    *,
    owner: str | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    end_planned: bool = True,
    formerly: str | None = None,
    **details: Any,
) -> Run:
    """The newest unfinished run with `resume_key` and a committed plan, taken over; else a new run with `details`.

    `formerly` is the resume key that an earlier version gave the same command: its run is taken over, too, and gets the new one.
    `details` are fields of RunDocument: settings, digests, versions, key_ids, base_run. Waits up to `patience_seconds`
    for a sign of life where a driver died; OwnedElsewhere names a living one, whatever run of the campaign it drives.
    All other unfinished runs end as ABANDONED, with `end_planned` False only those without a plan: their drivers, should
    they wake, find them so. A run that its gate holds counts as unfinished while nothing else was published: its shards are
    done, so it is only judged again.
    """
    owner = owner or new_owner()
    stored, slot = _read_slot(storage, campaign)
    runs = list_runs(storage, campaign)
    unfinished = [run for run in runs if run.unfinished and not run.erased_from]  # those are an erasure's: it claims nothing
    planned = {run.run_id for run in unfinished if storage.head(layout.plan_document(campaign, run.run_id))}
    chosen = _resumable(storage, runs, planned, {resume_key, formerly})
    watched = {run.run_id for run in unfinished if not has_ended(run.owner)}
    # No run.json yet is no sign of death: its driver may be between its first two writes.
    if slot and slot.run_id not in {run.run_id for run in runs} and not has_ended(slot.owner):
        watched.add(slot.run_id)
    _wait_for_silence(storage, campaign, watched, stored, patience_seconds)
    run_id = chosen.run_id if chosen else layout.new_run_id()
    _claim(storage, campaign, stored, DriverSlot(run_id=run_id, owner=owner, turn=slot.turn + 1 if slot else 1))
    for run in unfinished:
        ends = run.run_id != run_id and (end_planned or run.run_id not in planned)
        if ends and (other := _hold(storage, run, owner)):
            _end_other(other, f"run {run_id} took its place")
    if chosen:
        run = _hold(storage, chosen, owner)
        if run is None:
            raise RunError(f"run {run_id} of campaign {campaign} was removed meanwhile; start again")
        again = {"state": "RUNNING", "gate": None} if chosen.state == "HELD" else {}
        run.update(owner=owner, note="", resume_key=resume_key, **again)
        return run
    now = utc_now()
    document = RunDocument(
        campaign=campaign, run_id=run_id, resume_key=resume_key, owner=owner, created_at=now, updated_at=now, **details
    )
    etag = storage.swap_or_find(layout.run_document(campaign, run_id), document.to_bytes(), None)
    return Run(storage, document, etag, owner, resumed=False)


def _resumable(storage: Storage, runs: list[RunDocument], planned: set[str], resume_keys: set[str | None]) -> RunDocument | None:
    """The newest run that the same command goes on with; `planned` are the unfinished ones that have a plan."""
    same = [run for run in runs if run.resume_key in resume_keys]
    found = [run for run in same if run.run_id in planned] or [run for run in same if _is_held_still(storage, run)]
    return found[0] if found else None


class Erased(NamedTuple):
    """A pointer that an erasure moved: what one who swaps it must know."""

    run_id: str
    generation: int
    etag: str


def erased_since(storage: Storage, campaign: str, plan: Plan) -> Erased | None:
    """The pointer, if erasures and nobody else moved it since the plan was made; None if somebody else did, or nobody."""
    stored = storage.get(layout.pointer(campaign))
    if stored is None or stored.etag == plan.pointer_etag:
        return None
    pointer = parse_document(Pointer, stored.data, storage.address(layout.pointer(campaign)))
    document = storage.get(layout.run_document(campaign, pointer.run_id))
    run = document and parse_document(RunDocument, document.data, storage.address(layout.run_document(campaign, pointer.run_id)))
    if not run or plan.base_run not in run.erased_from:
        return None
    steps = len(run.erased_from) - run.erased_from.index(plan.base_run)
    return (
        Erased(pointer.run_id, pointer.generation, stored.etag) if pointer.generation == plan.pointer_generation + steps else None
    )


def _is_held_still(storage: Storage, run: RunDocument) -> bool:
    """Whether its gate holds the run, and the pointer is the one that the run was planned against: it could be published."""
    if run.state != "HELD" or run.gate is None:
        return False
    plan = storage.get(layout.plan_document(run.campaign, run.run_id))
    pointer = storage.get(layout.pointer(run.campaign))
    if plan is None:
        return False
    planned = parse_document(Plan, plan.data, storage.address(layout.plan_document(run.campaign, run.run_id)))
    return planned.pointer_etag == (pointer and pointer.etag) or erased_since(storage, run.campaign, planned) is not None


def _end_other(run: Run, note: str) -> None:
    """End an unfinished run, unless it is published and its driver only could not say so any more."""
    before = run.document
    if not _say_if_published(run, before):
        run.end("ABANDONED", note)
        # Its driver moves the pointer before it looks at run.json; we look at the pointer after the mark. One sees the other.
        _say_if_published(run, before)


def _say_if_published(run: Run, before: RunDocument) -> bool:
    stored = run.storage.get(layout.pointer(run.campaign))
    pointer = stored and parse_document(Pointer, stored.data, run.storage.address(layout.pointer(run.campaign)))
    published = pointer is not None and pointer.run_id == run.run_id
    if published:
        run.update(state=before.state, note=before.note, owner=None, pointer="moved", generation=pointer.generation)
    return published


def _read_slot(storage: Storage, campaign: str) -> tuple[Stored | None, DriverSlot | None]:
    key = layout.driver_slot(campaign)
    stored = storage.get(key)
    return stored, stored and parse_document(DriverSlot, stored.data, storage.address(key))


def _wait_for_silence(storage: Storage, campaign: str, run_ids: set[str], slot: Stored | None, patience_seconds: float) -> None:
    """Return when none of the runs moved for `patience_seconds`; OwnedElsewhere as soon as one does, or one is claimed."""

    def look() -> dict[str, Stored | None]:
        _raise_if_claimed(storage, campaign, slot)
        return {run_id: storage.get(layout.run_document(campaign, run_id)) for run_id in run_ids}

    def refuse(run_id: str, now: Stored) -> None:
        key = layout.run_document(campaign, run_id)
        _raise_owned(campaign, parse_document(RunDocument, now.data, storage.address(key)))

    wait_for_silence(look, patience_seconds, refuse)


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


def _hold(storage: Storage, seen: RunDocument, owner: str) -> Run | None:
    """The run as it was seen, to be written by `owner`; None if it was removed, OwnedElsewhere if it moved since."""
    key = layout.run_document(seen.campaign, seen.run_id)
    stored = storage.get(key)
    if stored is None:
        return None
    there = parse_document(RunDocument, stored.data, storage.address(key))
    if (there.owner, there.heartbeat) != (seen.owner, seen.heartbeat):
        _raise_owned(seen.campaign, there)
    return Run(storage, there, stored.etag, owner, resumed=True)
