"""What may go: runs beyond the newest few, and objects that no kept run names.

Safe while refreshes run. A run that is unfinished stays, with the run it builds on and the objects in its journal.
An object goes only when it is unnamed and older than twice the longest run: whatever a run in progress is about to name,
it wrote or refreshed less than one run ago (objects.py). And it goes only in a second clean-up, a grace time after the first
that found it, if it was not written again in between. Killed half-way, the next clean-up does the rest.
"""

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from adgen.creatives import layout
from adgen.creatives.candidates import Candidate, read_candidates, split_due, write_candidates
from adgen.creatives.documents import RunDocument, parse_document
from adgen.creatives.hash_files import HashFiles
from adgen.creatives.journal import Journal
from adgen.creatives.names import campaigns, is_our_folder, own_entries, run_ids
from adgen.creatives.publish import read_pointer
from adgen.creatives.reading import ManifestReader
from adgen.creatives.references import COLUMNS, references_of
from adgen.creatives.runs import list_runs
from adgen.creatives.served import remove_old_served, served_hashes
from adgen.creatives.storage import Storage, Taken
from adgen.errors import SettingsError

KEEP_RUNS = 7
SHORTEST_RUN_SECONDS = 24 * 3600.0  # what a run counts as at least; see objects.REFRESH_AFTER_SECONDS
THREADS = 32


@dataclass
class CleanedUp:
    """What a clean-up removed."""

    runs: int = 0
    objects: int = 0
    object_bytes: int = 0


def clean_up(storage: Storage, campaign: str, keep_runs: int = KEEP_RUNS, now: float | None = None) -> CleanedUp:
    """Remove old runs of `campaign`, then objects that no run of any campaign names. `now` is seconds since 1970."""
    if keep_runs < 2:
        raise SettingsError(f"keep_runs is {keep_runs}; keep 2 or more: consumers may be reading the run before the last")
    now = time.time() if now is None else now
    runs = {name: list_runs(storage, name) for name in campaigns(storage)}
    longest = max((run.updated_at - run.created_at).total_seconds() for run in _all(runs)) if any(runs.values()) else 0.0
    born_before = now - 2 * max(longest, SHORTEST_RUN_SECONDS)
    done = CleanedUp()
    kept = _kept(storage, campaign, runs.get(campaign, []), keep_runs)
    for run in runs.get(campaign, []):
        if run.run_id not in kept and mark_for_removal(storage, run):
            remove_run(storage, run)
            done.runs += 1
    _remove_strays(storage, campaign, {run.run_id for run in runs.get(campaign, [])}, born_before)
    remove_old_served(storage, now)
    left = [run for run in _all(runs) if run.campaign != campaign or run.run_id in kept]
    _remove_objects(storage, left, now, born_before, done)
    for entry in list(own_entries(storage, layout.PROBES)):
        if entry.modified < born_before:  # of a job that was killed while it asked what the store can do
            storage.delete(entry.key)
    storage.sweep(now - born_before, is_our_folder)
    return done


def _all(runs: dict[str, list[RunDocument]]) -> list[RunDocument]:
    return [run for found in runs.values() for run in found]


def _kept(storage: Storage, campaign: str, runs: list[RunDocument], keep_runs: int) -> set[str]:
    """The newest that were published, the published one and the one before it, as many others, and the unfinished ones with
    the runs they build on."""
    finished = [run for run in runs if not run.unfinished and run.state != "ABANDONED"]
    published = [run.run_id for run in finished if run.pointer == "moved"]
    kept = {*published[:keep_runs], *[run.run_id for run in finished if run.pointer != "moved"][:keep_runs]}
    pointer, _ = read_pointer(storage, campaign)
    if pointer:
        before = pointer.previous_run_id or next((run_id for run_id in published if run_id != pointer.run_id), "")
        kept |= {pointer.run_id, before}
    for run in runs:
        if run.unfinished:
            kept |= {run.run_id, run.base_run or ""}
            if storage.head(layout.plan_document(campaign, run.run_id)):
                kept.add(Journal(storage, campaign, run.run_id).read_plan().base_run or "")
    return kept


def mark_for_removal(storage: Storage, run: RunDocument) -> bool:
    """Make the run ABANDONED unless the pointer names it or it changed since it was read; whether it is."""
    if run.state == "ABANDONED":
        return True
    key = layout.run_document(run.campaign, run.run_id)
    stored = storage.get(key)
    if stored is None or parse_document(RunDocument, stored.data, storage.address(key)) != run:
        return False  # the next clean-up decides
    changes = {"state": "ABANDONED", "pointer": "untouched", "owner": None, "note": "being removed"}
    marked = run.model_copy(update=changes | {"heartbeat": run.heartbeat + 1})
    try:
        etag = storage.swap_or_find(key, marked.to_bytes(), stored.etag)
    except Taken:
        return False
    # A rollback moves the pointer before it looks at our mark: one of us sees the other.
    pointer, _ = read_pointer(storage, run.campaign)
    if pointer and pointer.run_id == run.run_id:
        storage.swap_or_find(key, run.model_copy(update={"heartbeat": run.heartbeat + 2}).to_bytes(), etag)
        return False
    return True


def remove_run(storage: Storage, run: RunDocument) -> None:
    """Remove all that a marked run holds, run.json last: killed half-way, the next clean-up finds the mark.

    Rows go before the lineage and plan that say whose they are, plan.json last: an erasure in between still finds the rows.
    """
    _delete_all(storage, f"{layout.run(run.campaign, run.run_id)}manifest/")
    _delete_all(storage, layout.journal(run.campaign, run.run_id))
    plan = layout.plan_document(run.campaign, run.run_id)
    _delete_all(storage, layout.private_run(run.campaign, run.run_id), but=plan)
    storage.delete(plan)
    storage.drop(layout.run_document(run.campaign, run.run_id))


def _remove_strays(storage: Storage, campaign: str, known: set[str], born_before: float) -> None:
    """What a driver thought dead wrote under its run after the run was removed."""
    for run_id in run_ids(storage, f"{layout.private_campaign(campaign)}runs/"):
        if run_id not in known:
            prefix = layout.private_run(campaign, run_id)
            if all(entry.modified < born_before for entry in own_entries(storage, prefix)):
                _delete_all(storage, prefix)


def _delete_all(storage: Storage, prefix: str, but: str = "") -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(storage.delete, [entry.key for entry in own_entries(storage, prefix) if entry.key != but]):
            pass


def _remove_objects(storage: Storage, runs: list[RunDocument], now: float, born_before: float, done: CleanedUp) -> None:
    """Mark into one file per hash prefix, then sweep prefix by prefix: memory holds 1/256 of the names."""

    def remove(found: Candidate) -> int:
        # Looked at again just before: a run may have refreshed it since it was listed.
        again = storage.head(found.key)
        if again is None or int(again.modified) != int(found.modified):  # some servers round one of the two to seconds
            return -1
        storage.delete(found.key)
        return again.size

    with tempfile.TemporaryDirectory(prefix="adgen-clean-up-") as folder, ThreadPoolExecutor(THREADS) as pool:
        named = HashFiles(Path(folder))
        named.add(bytes.fromhex(sha256) for sha256 in named_hashes(storage, runs))
        earlier = {entry.key for entry in own_entries(storage, layout.CANDIDATES)}
        objects = (entry for entry in storage.entries(layout.OBJECTS) if layout.object_hash(entry.key))
        for shard, entries in groupby(objects, key=lambda entry: layout.object_hash(entry.key)[:2]):
            hashes = named.read(shard)
            old = [Candidate(entry.key, entry.modified, now) for entry in entries if entry.modified < born_before]
            unnamed = [each for each in old if bytes.fromhex(layout.object_hash(each.key)) not in hashes]
            before = read_candidates(storage, shard) if layout.candidates(shard) in earlier else []
            due, waiting = split_due(before, unnamed, now)
            for size in filter(lambda size: size >= 0, pool.map(remove, due)):
                done.objects += 1
                done.object_bytes += size
            if waiting or before:
                write_candidates(storage, shard, waiting)
            earlier.discard(layout.candidates(shard))
        for key in earlier:  # of shards that have no object any more
            storage.delete(key)


def named_hashes(storage: Storage, runs: list[RunDocument]) -> Iterator[str]:
    """The sha256 of every object that the runs name, repeats included: manifests, and journals of unfinished runs; and of those
    that creatives made on demand name."""
    yield from served_hashes(storage)
    for run in runs:
        for table in _tables(storage, run):
            for batch in table.select(COLUMNS).to_batches(max_chunksize=4096):
                for row in batch.to_pylist():
                    yield from filter(None, (layout.object_hash(reference.uri) for reference in references_of(row)))


def _tables(storage: Storage, run: RunDocument) -> Iterator[pa.Table]:
    yield from ManifestReader(storage, run).tables()
    if run.unfinished:
        journal = Journal(storage, run.campaign, run.run_id)
        for index in sorted(journal.done()):
            yield journal.read_part(index)
