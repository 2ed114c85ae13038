"""Small runs for tests of the store: real rows and real objects, no model."""

import hashlib
import os
import time
from collections.abc import Callable

import pyarrow as pa

from adgen.creatives.documents import PlanPart
from adgen.creatives.journal import Journal
from adgen.creatives.objects import put_object
from adgen.creatives.publish import finish, read_pointer
from adgen.creatives.reading import PublishedRun, open_published
from adgen.creatives.runs import Run, start_or_resume
from adgen.creatives.storage import Data, Entry, Storage, Stored
from adgen.creatives.tombstones import Tombstones
from adgen.errors import StoreError
from adgen.records import FAILED, LINEAGE, MANIFEST, OK, REJECTED, user_key

CAMPAIGN = "autumn"
SECRET = b"a secret for tests"


def pair_ids(count: int, first: int = 0) -> list[str]:
    """Stable pair ids, 32 hex digits."""
    return [hashlib.sha256(f"pair {number}".encode()).hexdigest()[:32] for number in range(first, first + count)]


def make_rows(storage: Storage | None, pairs: list[str], look: str = "plain", status: str = OK) -> pa.Table:
    """One manifest row a pair; ok rows have a small object in `storage` (none: no object is written)."""
    rows = []
    for pair in pairs:
        row = {
            "schema_version": 1,
            "pair_id": pair,
            "variant": 0,
            "rank": 0,
            "user_key": user_key(SECRET, pair[:1]),
            "product_id": f"product-{pair[:2]}",
            "status": status,
            "reason": None if status == OK else "unreadable" if status == FAILED else "forbidden_word",
            "stale": False,
            "fingerprint": hashlib.sha256(f"made of {pair} {look}".encode()).hexdigest(),  # as version 0.1 had it: plain
            "gates": [],
            "scores": [],
        }
        if status == OK and storage is not None:
            found = put_object(storage, f"{pair} {look}".encode(), "webp")
            row |= {"title": look, "uri": found.uri, "sha256": found.sha256, "bytes": found.bytes}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=MANIFEST)


def make_lineage(pairs: list[str]) -> pa.Table:
    """One lineage row a pair."""
    rows = [{"pair_id": pair, "user_id": f"user-{pair[:1]}", "product_id": "p", "attempt": 0, "variant": 0} for pair in pairs]
    return pa.Table.from_pylist(rows, schema=LINEAGE)


def begin(storage: Storage, resume_key: str = "tonight", patience_seconds: float = 0.0, **details) -> Run:
    """`start_or_resume` that waits for nobody unless told."""
    return start_or_resume(storage, CAMPAIGN, resume_key, patience_seconds=patience_seconds, **details)


def planned_pairs(pairs: list[str], whose: str = "user-") -> pa.Table:
    """A plan part: whose pairs they are."""
    return pa.table({"pair_id": pairs, "user_id": [f"{whose}{pair[:1]}" for pair in pairs]})


def write_plan(journal: Journal, pairs: list[str], pairs_per_shard: int = 4, whose: str = "user-") -> list[PlanPart]:
    """Plan parts of `pairs`, not committed."""
    starts = enumerate(range(0, len(pairs), pairs_per_shard))
    return [journal.write_plan_part(index, planned_pairs(pairs[start : start + pairs_per_shard], whose)) for index, start in starts]


def commit_parts(journal: Journal, parts: list[PlanPart]) -> None:
    """The plan of parts, against the pointer as it is."""
    pointer, etag = read_pointer(journal.storage, journal.campaign)
    journal.commit_plan(
        parts,
        settings_digest="settings",
        inputs={"pairs": "etag"},
        base_run=pointer.run_id if pointer else None,
        pointer_etag=etag,
        pointer_generation=pointer.generation if pointer else 0,
    )


def commit_plan(run: Run, pairs: list[str], pairs_per_shard: int = 4, key: bytes | None = None, whose: str = "user-") -> Journal:
    """Plan `pairs` in shards, against the pointer as it is; with a campaign key its tombstones are read again and again."""
    journal = Journal(run.storage, run.campaign, run.run_id, Tombstones(run.storage, key) if key else None)
    commit_parts(journal, write_plan(journal, pairs, pairs_per_shard, whose))
    return journal


def do_shards(journal: Journal, look: str = "plain", but_last: bool = False) -> None:
    """Commit every shard that is not done (but the last); the last pair of each is rejected, the first of shard 1 failed."""
    unfinished = journal.unfinished()
    for part in unfinished[:-1] if but_last else unfinished:
        pairs = journal.read_plan_part(part)["pair_id"].to_pylist()
        bad = {pairs[-1]: REJECTED} | ({pairs[0]: FAILED} if part.index == 1 else {})
        rows = [make_rows(journal.storage, [pair], look, bad.get(pair, OK)) for pair in pairs]
        journal.commit_part(part, pa.concat_tables(rows), make_lineage(pairs))


def refresh(storage: Storage, pairs: list[str], look: str = "plain", resume_key: str = "tonight", **options) -> Run:
    """A whole refresh, resuming what is there."""
    run = begin(storage, resume_key)
    journal = Journal(storage, CAMPAIGN, run.run_id) if run.resumed else commit_plan(run, pairs)
    if run.document.state == "RUNNING":
        do_shards(journal, look)
    finish(run, **options)
    return run


def with_values(rows: pa.Table, **columns: list) -> pa.Table:
    """Manifest rows with other values in these columns."""
    for name, values in columns.items():
        field = MANIFEST.field(name)
        rows = rows.set_column(rows.column_names.index(name), field, pa.array(values, field.type))
    return rows


def publish_rows(
    storage: Storage, rows: pa.Table, lineage: pa.Table | None = None, rows_per_file: int = 1_000_000, **details
) -> PublishedRun:
    """Publish exactly these rows, as a consumer then reads them."""
    run = begin(storage, **details)
    journal = commit_plan(run, rows["pair_id"].to_pylist(), rows.num_rows)
    journal.commit_part(journal.unfinished()[0], rows, lineage)
    finish(run, rows_per_file=rows_per_file)
    return open_published(storage, CAMPAIGN)


class Crash(BaseException):
    """The process dies here: nothing of ours may catch it."""


class WrappedStorage(Storage):
    """Passes every act on to another storage; subclasses misbehave in `act`."""

    def __init__(self, inner: Storage):
        self.inner, self.uri = inner, inner.uri

    def act(self, name: str, *arguments):
        return getattr(self.inner, name)(*arguments)

    def get(self, key: str) -> Stored | None:
        return self.act("get", key)

    def head(self, key: str) -> Entry | None:
        return self.act("head", key)

    def create(self, key: str, data: Data, content_type: str | None = None) -> None:
        return self.act("create", key, data, content_type)

    def put(self, key: str, data: Data, content_type: str | None = None) -> None:
        return self.act("put", key, data, content_type)

    def delete(self, key: str) -> None:
        return self.act("delete", key)

    def entries(self, prefix: str):
        return self.act("entries", prefix)

    def children(self, prefix: str) -> list[str]:
        return self.act("children", prefix)

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        return self.act("swap", key, data, etag)

    def drop(self, key: str) -> None:
        return self.act("drop", key)

    def sweep(self, older_than_seconds: float, is_ours: Callable[[str], bool]) -> int:
        return self.act("sweep", older_than_seconds, is_ours)


class CrashingStorage(WrappedStorage):
    """Dies after `acts` acts, and stays dead."""

    def __init__(self, inner: Storage, acts: int):
        super().__init__(inner)
        self.left = acts

    def act(self, name: str, *arguments):
        if self.left == 0:
            raise Crash(name)
        self.left -= 1
        return super().act(name, *arguments)


class LossyStorage(WrappedStorage):
    """Every swap comes through and its response is lost."""

    def act(self, name: str, *arguments):
        result = super().act(name, *arguments)
        if name == "swap":
            raise StoreError("read timeout")
        return result


def make_older(store_root: str, key: str, seconds: float) -> None:
    """Let a file of a folder store look `seconds` old."""
    then = time.time() - seconds
    os.utime(os.path.join(store_root, key), (then, then))


class CarelessStorage(WrappedStorage):
    """Ignores the named precondition, as some S3-compatible servers do."""

    def __init__(self, inner: Storage, ignored: str):
        super().__init__(inner)
        self.ignored = ignored

    def act(self, name: str, *arguments):
        if name == self.ignored == "create":
            return self.inner.put(*arguments)
        if name == self.ignored == "swap":
            key, data, _ = arguments
            stored = self.inner.get(key)
            return self.inner.swap(key, data, stored.etag if stored else None)
        return super().act(name, *arguments)
