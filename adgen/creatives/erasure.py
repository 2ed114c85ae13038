"""Forgetting users, in an order that holds at any crash and beside any refresh: do it again and it goes on.

First the tombstones, which planners, plan commits and part commits ask each time. Then runs that died without a plan end.
Then each campaign's published run is copied without the users' pairs, and the pointer moves to the copy. A refresh may run
meanwhile: it leaves the users out and follows the pointer. A run that was interrupted is copied as well, so that the same
command goes on with the copy. Then whatever still holds the users goes, found by walking private/ and not only by what
documents name, with the objects that no other row names. Last the receipt, after a scan that found nothing; the next
refresh scans once more, since a worker thought dead may have written since.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from adgen.creatives import layout
from adgen.creatives.cleanup import mark_for_removal, named_hashes, remove_run
from adgen.creatives.documents import PlanPart, RunDocument, utc_now
from adgen.creatives.journal import Journal, from_parquet, pairs_of, to_parquet, without_pairs
from adgen.creatives.names import campaigns, own_entries
from adgen.creatives.ownership import PATIENCE_SECONDS, new_owner
from adgen.creatives.publish import publish, read_pointer, seal
from adgen.creatives.references import COLUMNS, references_of
from adgen.creatives.runs import Run, list_runs, living_runs
from adgen.creatives.served import forget_served, is_served_row
from adgen.creatives.storage import Entry, Storage
from adgen.creatives.tombstones import Mark, Receipt, Tombstones, mark_of, set_tombstones, standing, write_receipts, write_scanned
from adgen.errors import OwnedElsewhere, StoreError
from adgen.records import MANIFEST, key_id

THREADS = 16
_TRIES = 5


@dataclass
class _Found:
    """Where a walk met the users: pairs by run, and files of no run."""

    pairs: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def forget(
    storage: Storage, keys: bytes | Collection[bytes], user_ids: Collection[str], patience_seconds: float = PATIENCE_SECONDS
) -> Receipt:
    """Remove the users from every run of every campaign; the receipt, which is also stored for each of them under each key.

    A campaign plans by its own key: give all of them, `keys_not_given` tells which lack. OwnedElsewhere while a run that
    holds the users, or that is being planned, is alive: they are not published any more then, and the next refresh finishes
    the erasure. Many users at once cost little more than one: all runs are read through.
    """
    keys = [keys] if isinstance(keys, bytes) else list(keys)
    marks = [mark_of(key, user) for key in keys for user in set(user_ids)]
    set_tombstones(storage, marks)
    return _Erasure(storage, keys, set(user_ids), patience_seconds).run(marks)


def finish_erasures(storage: Storage, key: bytes, patience_seconds: float = PATIENCE_SECONDS) -> Receipt | None:
    """Finish what a `forget` left half done, and look once more after the users of new receipts. None, and one listing, if
    there are neither. Tombstones of another key are left alone: see `pending_elsewhere`.

    A tombstone does not say whose it is: the users are those found in the store whose hash it is.
    """
    here = standing(storage).of(_own_ids(storage, key))
    if not here.pending and not here.unscanned:
        return None
    hashes = {mark.user_hash for mark in (*here.pending, *here.unscanned)}
    users = {user for user in _users(storage) if mark_of(key, user).user_hash in hashes}
    again = {mark for mark in here.unscanned if mark.user_hash in {mark_of(key, user).user_hash for user in users}}
    receipt = None
    if here.pending or again:
        receipt = _Erasure(storage, [key], users, patience_seconds).run([*here.pending, *again])
    write_scanned(storage, here.unscanned - again)
    return receipt


def pending_elsewhere(storage: Storage, key: bytes) -> dict[str, int]:
    """Erasures that wait for another campaign key than this one: how many, by the key's id."""
    mine, found = _own_ids(storage, key), {}
    for mark in standing(storage).pending:
        if mark.key_id not in mine:
            found[mark.key_id or "unknown"] = found.get(mark.key_id or "unknown", 0) + 1
    return found


def keys_not_given(storage: Storage, keys: Collection[bytes]) -> dict[str, str]:
    """Campaigns whose newest run was planned with a key that is not among these: the key's id by campaign. Such a campaign
    does not know the tombstones, so its next refresh would show the users again."""
    ids, found = {key_id(key) for key in keys}, {}
    for campaign in campaigns(storage):
        used = [run.key_ids["campaign_key"] for run in list_runs(storage, campaign) if "campaign_key" in run.key_ids]
        if used and used[0] not in ids:
            found[campaign] = used[0]
    return found


class _Erasure:
    def __init__(self, storage: Storage, keys: Collection[bytes], users: set[str], patience_seconds: float):
        self.storage, self.users, self.patience_seconds = storage, users, patience_seconds
        self.tombstones = {key_id(key): Tombstones(storage, key) for key in keys}
        self.receipt = Receipt(completed_at=utc_now(), runs=0, objects=0)

    def run(self, marks: Iterable[Mark]) -> Receipt:
        """Every step; the receipt, stored for each of the marks."""
        runs = _all_runs(self.storage)
        alive = living_runs(self.storage, runs, self.patience_seconds)
        planning = {run.run_id for run in runs if run.unfinished and not _is_planned(self.storage, run)}
        for run in runs:
            if run.run_id in planning - alive and not mark_for_removal(self.storage, run):
                alive.add(run.run_id)
        self._replace(find_users(self.storage, self.users), alive)
        self._remove(find_users(self.storage, self.users), alive, {run.run_id for run in runs})
        self._raise_if_held(runs, alive, alive & planning)
        receipt = self.receipt.model_copy(update={"completed_at": utc_now()})
        write_receipts(self.storage, marks, receipt)
        return receipt

    # -- copies without the users -------------------------------------------------------------------------------

    def _replace(self, found: _Found, alive: set[str]) -> None:
        """Publish copies of the published runs that hold the users, and leave copies of interrupted ones."""
        for campaign in sorted({campaign for campaign, _ in found.pairs}):
            self._republish(campaign, found)
            for run in list_runs(self.storage, campaign):
                pairs = found.pairs.get((campaign, run.run_id))
                goes_on = (run.unfinished or (run.state == "HELD" and run.gate is not None)) and not run.erased_from
                published = _pointer(self.storage, campaign) == run.run_id
                if pairs and goes_on and not published and run.run_id not in alive and _is_planned(self.storage, run):
                    self._copy_to_resume(run, pairs)

    def _republish(self, campaign: str, found: _Found) -> None:
        """Publish the published run again without the users' pairs, if it has any."""
        for _ in range(_TRIES):
            pointer, etag = read_pointer(self.storage, campaign)
            if pointer is None:
                return
            old = next(run for run in list_runs(self.storage, campaign) if run.run_id == pointer.run_id)
            pairs = found.pairs.get((campaign, old.run_id)) or pairs_in_run(self.storage, old, self.users)
            if not pairs:
                return
            run = self._begin_copy(old, resume_key=f"erasure of {old.run_id}", base_run=old.run_id)
            with run.beating():
                plan = Journal(self.storage, campaign, old.run_id).read_plan()
                where = {"base_run": old.run_id, "pointer_etag": etag, "pointer_generation": pointer.generation}
                self._copy(old, run, pairs, settings_digest=plan.settings_digest, inputs=plan.inputs, **where)
                try:
                    seal(run, state="PARTIAL" if old.state == "PARTIAL" else "COMPLETE", tombstones=self._tombstones_of(old))
                    publish(run)
                    return
                except OwnedElsewhere:
                    raise
                except StoreError:
                    if run.document.state != "HELD":
                        raise
            # Another run was published meanwhile: see whether that one holds them.
            if mark_for_removal(self.storage, run.document):
                remove_run(self.storage, run.document)
        raise StoreError(f"campaign {campaign}: other runs are published all the time; do it again")

    def _copy_to_resume(self, old: RunDocument, pairs: set[str]) -> None:
        """An interrupted run again without the users' pairs: the same command goes on with it."""
        kept = old.model_dump(include={"num_slots", "duplicates", "left_out"})
        run = self._begin_copy(old, resume_key=old.resume_key, base_run=old.base_run, **kept)
        with run.beating():
            plan = Journal(self.storage, old.campaign, old.run_id).read_plan()
            where = plan.model_dump(include={"settings_digest", "inputs", "base_run", "pointer_etag", "pointer_generation"})
            self._copy(old, run, pairs, **where)
        if mark_for_removal(self.storage, next(r for r in list_runs(self.storage, old.campaign) if r.run_id == old.run_id)):
            run.update(owner=None, erased_from=(), note="goes on in place of a run with users who were forgotten")

    def _begin_copy(self, old: RunDocument, **details) -> Run:
        """A run that a refresh neither takes over nor waits for."""
        now, owner, run_id = utc_now(), new_owner(), layout.new_run_id()
        details |= old.model_dump(include={"settings", "digests", "versions", "key_ids"})
        document = RunDocument(
            campaign=old.campaign,
            run_id=run_id,
            owner=owner,
            created_at=now,
            updated_at=now,
            erased_from=(*old.erased_from, old.run_id),
            **details,
        )
        etag = self.storage.swap_or_find(layout.run_document(old.campaign, run_id), document.to_bytes(), None)
        return Run(self.storage, document, etag, owner, resumed=False)

    def _copy(self, old: RunDocument, run: Run, pairs: set[str], **plan_details) -> None:
        """Plan and journal of a run, as far as it is done, without some pairs."""
        source, target = (Journal(self.storage, old.campaign, run_id) for run_id in (old.run_id, run.run_id))
        parts, done = source.read_plan().parts, source.done()

        def copy_plan(part: PlanPart) -> PlanPart:
            return target.write_plan_part(part.index, without_pairs(source.read_plan_part(part), pairs), part.kind)

        def copy_part(part: PlanPart) -> None:
            run.check()
            if part.index in done:
                lineage = source.read_lineage(part.index)
                rows = without_pairs(source.read_part(part.index), pairs).replace_schema_metadata(None)
                target.commit_part(part, rows, None if lineage is None else without_pairs(lineage, pairs))
            elif part.rows == 0:  # no engine is asked for nothing
                target.commit_part(part, MANIFEST.empty_table())

        with ThreadPoolExecutor(THREADS) as pool:
            made = list(pool.map(copy_plan, parts))
            target.commit_plan(made, **plan_details)
            list(pool.map(copy_part, made))

    def _tombstones_of(self, run: RunDocument) -> Tombstones | None:
        return self.tombstones.get(run.key_ids.get("campaign_key", ""))

    # -- removal ------------------------------------------------------------------------------------------------

    def _remove(self, found: _Found, alive: set[str], known: set[str]) -> None:
        """Objects first, then what tells whose they are; a run that is alive, or began after the erasure, is left to its driver."""
        runs = _all_runs(self.storage)
        left = {(run.campaign, run.run_id) for run in runs if run.state == "ABANDONED" or (run.erased_from and run.unfinished)}
        holding = [run for run in runs if (run.campaign, run.run_id) in left | set(found.pairs)]
        going = [run for run in holding if run.run_id in known - alive and mark_for_removal(self.storage, run)]
        names = {run.run_id for run in going}
        theirs = {run.run_id: found.pairs.get((run.campaign, run.run_id), set()) for run in going}
        uris = set().union(*(objects_of(self.storage, run, theirs[run.run_id]) for run in going if theirs[run.run_id]))
        served = {key for key in found.files if is_served_row(key)}
        uris |= forget_served(self.storage, served, self.users)
        objects = _remove_objects(self.storage, uris, [run for run in runs if run.run_id not in names])
        self._remove_unpasted(found)
        for run in going:
            remove_run(self.storage, run)
        for campaign, run_id in set(found.pairs) - {(run.campaign, run.run_id) for run in runs}:
            for entry in own_entries(self.storage, layout.private_run(campaign, run_id)):  # written after its run was removed
                self.storage.delete(entry.key)
        for key in set(found.files) - served:
            self._rewrite(key)
        self.receipt = self.receipt.model_copy(update={"runs": len(going), "objects": objects})

    def _remove_unpasted(self, found: _Found) -> None:
        """Delete what an evaluation kept of the users' pairs."""
        for campaign, pair in {(campaign, pair) for (campaign, _), pairs in found.pairs.items() for pair in pairs}:
            for entry in own_entries(self.storage, layout.unpasted_pictures(campaign, pair)):
                self.storage.delete(entry.key)

    def _rewrite(self, key: str) -> None:
        """A private table of no run, without the users."""
        if stored := self.storage.get(key):
            table = from_parquet(stored.data)
            kept = table.filter(pc.invert(pc.is_in(table["user_id"], value_set=_strings(self.users))))
            self.storage.put(key, to_parquet(kept))

    def _raise_if_held(self, before: list[RunDocument], alive: set[str], planning: set[str]) -> None:
        """OwnedElsewhere or StoreError unless a scan finds nothing of the users, and no living planner may still write them."""
        found = find_users(self.storage, self.users)
        held = {run_id for _, run_id in found.pairs}
        if busy := [run for run in before if run.run_id in (held & alive) | planning]:
            named = "; ".join(f"run {run.run_id} of campaign {run.campaign}, driven by {run.owner}" for run in busy)
            raise OwnedElsewhere(
                f"the users are forgotten, and no published run shows them any more; {named}, still holds them or is being "
                "planned, and leaves them out of what it publishes. The next refresh finishes the erasure; or do it again then"
            )
        if held or found.files:
            raise StoreError(f"run {next(iter(held), found.files)} changed while users were being forgotten; do it again")


# -- the walk ------------------------------------------------------------------------------------------------------------


class _UserTable(NamedTuple):
    key: str
    run: tuple[str, str] | None
    table: pa.Table


def find_users(storage: Storage, users: Collection[str]) -> _Found:
    """Walk private/ for every table that names users; where these ones are."""
    found = _Found()

    def look(entry: Entry) -> tuple[_UserTable, set[str], bool] | None:
        read = _read_users(storage, entry)
        if read is None:
            return None
        pairs = pairs_of(read.table, users) if "pair_id" in read.table.column_names else set()
        return read, pairs, bool(pc.any(pc.is_in(read.table["user_id"], value_set=_strings(users))).as_py())

    with ThreadPoolExecutor(THREADS) as pool:
        for result in pool.map(look, _private_tables(storage)):
            if result is None or not result[2]:
                continue
            read, pairs, _ = result
            if read.run:
                found.pairs.setdefault(read.run, set()).update(pairs)
            else:
                found.files.append(read.key)
    return found


def pairs_in_run(storage: Storage, run: RunDocument, users: Collection[str]) -> set[str]:
    """The users' pairs in one run's plan and lineage."""
    pairs: set[str] = set()
    for entry in own_entries(storage, layout.private_run(run.campaign, run.run_id)):
        if entry.key.endswith(".parquet") and (read := _read_users(storage, entry)) and "pair_id" in read.table.column_names:
            pairs |= pairs_of(read.table, users)
    return pairs


def objects_of(storage: Storage, run: RunDocument, pairs: Collection[str]) -> set[str]:
    """The objects of some pairs' rows, as far as the run's journal and manifest are there."""
    uris: set[str] = set()
    folders = (layout.journal(run.campaign, run.run_id), f"{layout.run(run.campaign, run.run_id)}manifest/")
    for entry in (entry for folder in folders for entry in own_entries(storage, folder) if entry.key.endswith(".parquet")):
        if stored := storage.get(entry.key):
            rows = from_parquet(stored.data)
            theirs = rows.filter(pc.is_in(rows["pair_id"], value_set=_strings(pairs))).select([*COLUMNS])
            named = (reference for row in theirs.to_pylist() for reference in references_of(row))
            uris.update(reference.uri for reference in named if reference.is_well_formed)
    return uris


def _private_tables(storage: Storage) -> Iterator[Entry]:
    """Tables below private/ that may name users: journal parts do not."""
    for entry in own_entries(storage, layout.PRIVATE):
        is_table = entry.key.endswith(".parquet") and not entry.key.startswith(layout.FORGOTTEN)
        if is_table and not (layout.run_of(entry.key) and re.search(r"/runs/[^/]+/journal/", entry.key)):
            yield entry


def _read_users(storage: Storage, entry: Entry) -> _UserTable | None:
    """The columns that say whose rows a table holds; None if it names no users, or is gone."""
    stored = storage.get(entry.key)
    if stored is None:
        return None
    try:
        table = from_parquet(stored.data, ("user_id", "pair_id"))
    except pa.ArrowInvalid as error:
        raise StoreError(f"{storage.address(entry.key)}: is no table, so nobody knows whom it names; remove it ({error})") from None
    return _UserTable(entry.key, layout.run_of(entry.key), table) if "user_id" in table.column_names else None


def _users(storage: Storage) -> set[str]:
    """Every user that private/ names."""
    users: set[str] = set()
    for entry in _private_tables(storage):
        if read := _read_users(storage, entry):
            users.update(user for user in pc.unique(read.table["user_id"]).to_pylist() if user)
    return users


def _strings(values: Iterable[str]) -> pa.Array:
    return pa.array(sorted(values), pa.string())


def _all_runs(storage: Storage) -> list[RunDocument]:
    return [run for campaign in campaigns(storage) for run in list_runs(storage, campaign)]


def _is_planned(storage: Storage, run: RunDocument) -> bool:
    return storage.head(layout.plan_document(run.campaign, run.run_id)) is not None


def _pointer(storage: Storage, campaign: str) -> str | None:
    pointer, _ = read_pointer(storage, campaign)
    return pointer and pointer.run_id


def _own_ids(storage: Storage, key: bytes) -> set[str | None]:
    """The key's id; and none, which version 0.1 wrote, where no run of the store was made with another key."""
    used = {run.key_ids.get("campaign_key") for run in _all_runs(storage)}
    return {key_id(key), None} if used <= {key_id(key), None} else {key_id(key)}


def _remove_objects(storage: Storage, uris: Iterable[str], others: Iterable[RunDocument]) -> int:
    """Delete objects that no other run names; how many."""
    objects = {layout.object_hash(uri): uri for uri in uris}
    if objects:
        for sha in named_hashes(storage, [run for run in others if run.counts or run.unfinished]):
            objects.pop(sha, None)
    for uri in objects.values():
        storage.delete(uri)
    return len(objects)
