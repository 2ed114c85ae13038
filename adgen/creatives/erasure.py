"""Forgetting users, in an order that holds at any crash: do it again and it goes on.

First the tombstones, which planners ask. Then each campaign's published run is made again without the users' pairs, by
the same protocol as a refresh, so readers go from one whole run to another. Then every run that still holds the users
goes, with the objects that no other row names; rolling back beyond an erasure is not possible. Last the receipt.
"""

import hmac
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256

import pyarrow as pa
import pyarrow.compute as pc

from adgen.creatives import layout
from adgen.creatives.cleanup import mark_for_removal, named_hashes, remove_run
from adgen.creatives.documents import Document, Plan, RunDocument, utc_now
from adgen.creatives.journal import Journal
from adgen.creatives.ownership import PATIENCE_SECONDS
from adgen.creatives.publish import finish, read_pointer
from adgen.creatives.references import COLUMNS, references_of
from adgen.creatives.runs import list_runs, start_or_resume
from adgen.creatives.storage import Storage, Taken
from adgen.errors import StoreError
from adgen.records import canonical_bytes, digest

_RECEIPT = ".receipt.json"


class Tombstone(Document):
    """That a user was forgotten, and since when; the name of the file is the keyed hash of the user."""

    forgotten_at: datetime


class Receipt(Document):
    """What an erasure removed; written when nothing of the user is left in the store."""

    completed_at: datetime
    runs: int
    objects: int


@dataclass
class _Holdings:
    """What one run holds of the users."""

    run: RunDocument
    pairs: set[str] = field(default_factory=set)
    objects: set[str] = field(default_factory=set)


def user_hash(key: bytes, user_id: str) -> str:
    """The user's name among the tombstones, 64 hex digits; `key` must never rotate."""
    if not key:
        raise ValueError("an empty key would make names that anyone can compute")
    return hmac.new(key, canonical_bytes(["forgotten", user_id]), sha256).hexdigest()


def is_forgotten(storage: Storage, key: bytes, user_id: str) -> bool:
    """Whether the user has a tombstone. One request; planners of many users read `forgotten_hashes` once."""
    return storage.head(layout.tombstone(user_hash(key, user_id))) is not None


def forgotten_hashes(storage: Storage) -> set[str]:
    """The `user_hash` of every forgotten user, by listing."""
    return {name.removesuffix(".json") for name in _names(storage) if not name.endswith(_RECEIPT)}


def forget(storage: Storage, key: bytes, user_ids: Collection[str], patience_seconds: float = PATIENCE_SECONDS) -> Receipt:
    """Remove the users from every run of every campaign; the receipt, which is also stored for each of them.

    OwnedElsewhere while a refresh is running: the tombstones are set, call again when it is done. Many users at once
    cost little more than one: all runs are read through.
    """
    users = set(user_ids)
    hashes = sorted(user_hash(key, user_id) for user_id in users)
    for name in hashes:
        _create_once(storage, layout.tombstone(name), Tombstone(forgotten_at=utc_now()))
    return _forget(storage, hashes, users, patience_seconds)


def finish_erasures(storage: Storage, key: bytes, patience_seconds: float = PATIENCE_SECONDS) -> Receipt | None:
    """Finish what a `forget` left half done: tombstones without a receipt. None, and one listing, if there are none.

    A tombstone does not say whose it is: the users are those found in the runs whose hash it is.
    """
    names = _names(storage)
    received = {name.removesuffix(_RECEIPT) for name in names if name.endswith(_RECEIPT)}
    pending = {name.removesuffix(".json") for name in names if not name.endswith(_RECEIPT)} - received
    if not pending:
        return None
    users = {user for user in _users(storage) if user_hash(key, user) in pending}
    return _forget(storage, sorted(pending), users, patience_seconds)


def _forget(storage: Storage, hashes: list[str], users: set[str], patience_seconds: float) -> Receipt:
    campaigns = storage.children(layout.CAMPAIGNS)
    for campaign in campaigns:
        _publish_without(storage, campaign, users, digest("erasure", *hashes), patience_seconds)
    runs = [run for campaign in campaigns for run in list_runs(storage, campaign)]
    # An abandoned run may hold user ids in a plan that was never committed.
    holdings = [held for run in runs if (held := _holdings(storage, run, users)).pairs or held.run.state == "ABANDONED"]
    for held in holdings:
        if not mark_for_removal(storage, held.run):
            raise StoreError(f"run {held.run.run_id} changed while users were being forgotten; do it again")
    marked = {held.run.run_id for held in holdings}
    objects = _remove_objects(storage, holdings, [run for run in runs if run.run_id not in marked])
    _remove_unpasted(storage, holdings)
    for held in holdings:
        remove_run(storage, held.run)
    receipt = Receipt(completed_at=utc_now(), runs=len(holdings), objects=objects)
    for name in hashes:
        storage.put(layout.receipt(name), receipt.to_bytes())
    return receipt


def _publish_without(storage: Storage, campaign: str, users: set[str], resume_key: str, patience_seconds: float) -> None:
    """Publish the published run again without the users' pairs, if it has any. Its journal is made shard by shard."""
    pointer, etag = read_pointer(storage, campaign)
    if pointer is None:
        return
    old = next(run for run in list_runs(storage, campaign) if run.run_id == pointer.run_id)
    pairs = _holdings(storage, old, users).pairs
    if not pairs:
        return
    kept = old.model_dump(include={"settings", "digests", "versions", "key_ids"})
    # The night's work of a driver that died is not lost by it: its own command resumes it.
    kept |= {"base_run": old.run_id}
    run = start_or_resume(storage, campaign, resume_key, patience_seconds=patience_seconds, end_planned=False, **kept)
    source, target = Journal(storage, campaign, old.run_id), Journal(storage, campaign, run.run_id)
    with run.beating():
        if not run.resumed:
            plan = source.read_plan()
            parts = [
                target.write_plan_part(part.index, _without(source.read_plan_part(part), pairs), part.kind) for part in plan.parts
            ]
            target.commit_plan(
                parts,
                settings_digest=plan.settings_digest,
                inputs=plan.inputs,
                base_run=old.run_id,
                pointer_etag=etag,
                pointer_generation=pointer.generation,
            )
        if run.document.state == "RUNNING":
            for part in target.unfinished():
                run.check()
                lineage = source.read_lineage(part.index)
                rows = _without(source.read_part(part.index), pairs).replace_schema_metadata(None)
                target.commit_part(part, rows, None if lineage is None else _without(lineage, pairs))
        finish(run, partial=old.state == "PARTIAL", publish_partial=True)


def _without(table: pa.Table, pairs: set[str]) -> pa.Table:
    return table.filter(pc.invert(_is_any(table["pair_id"], pairs)))


def _is_any(column: pa.ChunkedArray, values: set[str]) -> pa.ChunkedArray:
    return pc.is_in(column, value_set=pa.array(sorted(values), pa.string()))


def _holdings(storage: Storage, run: RunDocument, users: set[str]) -> _Holdings:
    """The users' pairs in the run's plan and lineage, and the objects of those pairs' rows."""
    held = _Holdings(run)
    if storage.head(layout.plan_document(run.campaign, run.run_id)) is None:
        return held
    journal = Journal(storage, run.campaign, run.run_id)
    plan, done = journal.read_plan(), journal.done()
    for part in plan.parts:
        pairs: set[str] = set()
        for table in _tables_with_users(journal, plan, part.index, done):
            pairs.update(table.filter(_is_any(table["user_id"], users))["pair_id"].to_pylist())
        if pairs and part.index in done:
            rows = journal.read_part(part.index)
            for row in rows.filter(_is_any(rows["pair_id"], pairs)).select(["pair_id", *COLUMNS]).to_pylist():
                held.objects.update(reference.uri for reference in references_of(row) if reference.is_well_formed)
        held.pairs |= pairs
    return held


def _tables_with_users(journal: Journal, plan: Plan, index: int, done: set[int]) -> Iterator[pa.Table]:
    planned = journal.read_plan_part(plan.parts[index])
    if "user_id" in planned.column_names:
        yield planned
    if index in done and (lineage := journal.read_lineage(index)) is not None:
        yield lineage


def _remove_objects(storage: Storage, holdings: list[_Holdings], others: Iterable[RunDocument]) -> int:
    """Delete the users' objects that no other run names; how many."""
    objects = {layout.object_hash(uri): uri for held in holdings for uri in held.objects}
    if objects:
        for sha in named_hashes(storage, [run for run in others if run.counts or run.unfinished]):
            objects.pop(sha, None)
    for uri in objects.values():
        storage.delete(uri)
    return len(objects)


def _remove_unpasted(storage: Storage, holdings: list[_Holdings]) -> None:
    """Delete what an evaluation kept of the users' pairs."""
    for campaign, pair in {(held.run.campaign, pair) for held in holdings for pair in held.pairs}:
        for entry in storage.entries(layout.unpasted_pictures(campaign, pair)):
            storage.delete(entry.key)


def _names(storage: Storage) -> list[str]:
    return [entry.key.rpartition("/")[2] for entry in storage.entries(layout.FORGOTTEN)]


def _users(storage: Storage) -> Iterator[str]:
    """Every user in every run's plan and lineage, table by table."""
    for campaign in storage.children(layout.CAMPAIGNS):
        for run in list_runs(storage, campaign):
            if storage.head(layout.plan_document(campaign, run.run_id)) is None:
                continue
            journal = Journal(storage, campaign, run.run_id)
            plan, done = journal.read_plan(), journal.done()
            for part in plan.parts:
                for table in _tables_with_users(journal, plan, part.index, done):
                    yield from filter(None, pc.unique(table["user_id"]).to_pylist())


def _create_once(storage: Storage, key: str, document: Document) -> None:
    try:
        storage.create(key, document.to_bytes())
    except Taken:
        return
