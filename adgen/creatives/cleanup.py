"""What may go: runs beyond the newest few, and objects that no kept run names.

Safe beside running refreshes. A run that is unfinished stays, with the run it builds on and the objects in its journal.
An object goes only when it is unnamed and older than twice the longest run: whatever a run in progress is about to name,
it wrote or refreshed less than one run ago (objects.py). Killed half-way, the next clean-up does the rest.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from adgen.creatives import layout
from adgen.creatives.documents import RunDocument, parse_document
from adgen.creatives.journal import Journal
from adgen.creatives.publish import read_pointer
from adgen.creatives.reading import ManifestReader
from adgen.creatives.references import COLUMNS, references_of
from adgen.creatives.runs import list_runs
from adgen.creatives.storage import Entry, Storage, Taken
from adgen.errors import SettingsError

KEEP_RUNS = 7
SHORTEST_RUN_SECONDS = 24 * 3600.0  # what a run counts as at least; see objects.REFRESH_AFTER_SECONDS
THREADS = 32
_SHARDS = [f"{number:02x}" for number in range(256)]


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
    runs = {name: list_runs(storage, name) for name in storage.children(layout.CAMPAIGNS)}
    longest = max((run.updated_at - run.created_at).total_seconds() for run in _all(runs)) if any(runs.values()) else 0.0
    born_before = now - 2 * max(longest, SHORTEST_RUN_SECONDS)
    done = CleanedUp()
    kept = _kept(storage, campaign, runs.get(campaign, []), keep_runs)
    for run in runs.get(campaign, []):
        if run.run_id not in kept and mark_for_removal(storage, run):
            remove_run(storage, run)
            done.runs += 1
    _remove_strays(storage, campaign, {run.run_id for run in runs.get(campaign, [])}, born_before)
    left = [run for run in _all(runs) if run.campaign != campaign or run.run_id in kept]
    _remove_objects(storage, left, born_before, done)
    storage.sweep(now - born_before)
    return done


def _all(runs: dict[str, list[RunDocument]]) -> list[RunDocument]:
    return [run for found in runs.values() for run in found]


def _kept(storage: Storage, campaign: str, runs: list[RunDocument], keep_runs: int) -> set[str]:
    """The newest finished runs, the published one, and the unfinished ones with the runs they build on."""
    finished = [run.run_id for run in runs if not run.unfinished and run.state != "ABANDONED"]
    kept = set(finished[:keep_runs])
    pointer, _ = read_pointer(storage, campaign)
    if pointer:
        kept.add(pointer.run_id)
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
    """Remove all that a marked run holds, run.json last: killed half-way, the next clean-up finds the mark."""
    _delete_all(storage, layout.private_run(run.campaign, run.run_id))
    _delete_all(storage, f"{layout.run(run.campaign, run.run_id)}manifest/")
    storage.drop(layout.run_document(run.campaign, run.run_id))


def _remove_strays(storage: Storage, campaign: str, known: set[str], born_before: float) -> None:
    """What a driver thought dead wrote under its run after the run was removed."""
    for run_id in storage.children(f"{layout.private_campaign(campaign)}runs/"):
        if run_id not in known:
            prefix = layout.private_run(campaign, run_id)
            if all(entry.modified < born_before for entry in storage.entries(prefix)):
                _delete_all(storage, prefix)


def _delete_all(storage: Storage, prefix: str) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(storage.delete, [entry.key for entry in storage.entries(prefix)]):
            pass


def _remove_objects(storage: Storage, runs: list[RunDocument], born_before: float, done: CleanedUp) -> None:
    """Mark into one file per hash prefix, then sweep prefix by prefix: memory holds 1/256 of the names."""

    def remove(entry: Entry) -> tuple[int, int]:
        # Looked at again just before: a run may have refreshed it since it was listed.
        again = storage.head(entry.key)
        if again is None or again.modified >= born_before:
            return 0, 0
        storage.delete(entry.key)
        return 1, again.size

    with tempfile.TemporaryDirectory(prefix="adgen-clean-up-") as folder, ThreadPoolExecutor(THREADS) as pool:
        _write_names(named_hashes(storage, runs), Path(folder))
        objects = (entry for entry in storage.entries(layout.OBJECTS) if layout.object_hash(entry.key))
        for shard, entries in groupby(objects, key=lambda entry: layout.object_hash(entry.key)[:2]):
            data = Path(folder, shard).read_bytes()
            named = {data[start : start + 32] for start in range(0, len(data), 32)}
            unnamed = (
                entry
                for entry in entries
                if entry.modified < born_before and bytes.fromhex(layout.object_hash(entry.key)) not in named
            )
            for objects_removed, bytes_removed in pool.map(remove, unnamed):
                done.objects += objects_removed
                done.object_bytes += bytes_removed


def _write_names(hashes: Iterable[str], folder: Path) -> None:
    with ExitStack() as opened:
        files = {shard: opened.enter_context(open(folder / shard, "wb")) for shard in _SHARDS}
        for sha256 in hashes:
            files[sha256[:2]].write(bytes.fromhex(sha256))


def named_hashes(storage: Storage, runs: list[RunDocument]) -> Iterator[str]:
    """The sha256 of every object that the runs name, repeats included: manifests, and journals of unfinished runs."""
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
