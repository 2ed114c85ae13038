"""Creatives that were made on demand: a file of one row each, under private/campaigns/<campaign>/served/, named by fingerprint.

The file is the commit. It is created once, so that two replicas that make the same creative leave one; the published run is never
touched. Clean-up keeps what the file's row names for as many days as the file says, and then removes the file. Erasure finds the
user in it, as in every private table.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pyarrow as pa

from adgen.creatives import layout
from adgen.creatives.journal import from_parquet, to_parquet
from adgen.creatives.names import own_entries
from adgen.creatives.references import COLUMNS, references_of
from adgen.creatives.storage import Entry, Storage, Taken
from adgen.errors import StoreError
from adgen.records import LINEAGE, MANIFEST, digest, public_fingerprint, with_later_columns

Row = dict[str, Any]
SERVED = pa.schema([*MANIFEST, *(field.with_nullable(True) for field in LINEAGE if field.name not in MANIFEST.names)])
"""A manifest row with its lineage."""
KEEP_DAYS = 30
_KEEP_DAYS = b"adgen.keep_days"
_DAY = 24 * 3600.0
_ROW_FILE = re.compile(r"[0-9a-f]{32}\.parquet")
_KEY_SCHEMA = pa.schema([("request", pa.string())])


def read_served(storage: Storage, campaign: str, fingerprint: str) -> Row | None:
    """The row of a creative that was served, by its fingerprint; None: it was never made, or is cleaned up or erased."""
    stored = storage.get(layout.served(campaign, fingerprint))
    rows = with_later_columns(from_parquet(stored.data), SERVED).to_pylist() if stored else []
    return rows[0] if rows else None


def commit_served(storage: Storage, campaign: str, row: Row, keep_days: int = KEEP_DAYS) -> Row:
    """Commit a row whose objects are in the store; the row that stands, which is an earlier one's where there is one."""
    table = pa.Table.from_pylist([{name: row.get(name) for name in SERVED.names}], SERVED)
    table = table.replace_schema_metadata({_KEEP_DAYS: str(keep_days).encode()})
    try:
        storage.create(layout.served(campaign, row["fingerprint"]), to_parquet(table))
        return row
    except Taken:
        return read_served(storage, campaign, row["fingerprint"]) or row


def remember_request(storage: Storage, campaign: str, name: str, request: str) -> bool:
    """Whether `request` is what came first under a client's key. Both are `request_digest`s: nothing of them can be read."""
    key = layout.served(campaign, f"key-{name}")
    try:
        storage.create(key, to_parquet(pa.table({"request": [request]}, schema=_KEY_SCHEMA)))
        return True
    except Taken:
        return from_parquet(storage.read(key))["request"][0].as_py() == request


def request_digest(key: bytes, *parts: str | bytes | int | None) -> str:
    """A name for what a client sent that says nothing of it: 32 hex digits, HMAC by the campaign key."""
    return public_fingerprint(key, digest("request", *parts))


def served_files(storage: Storage) -> Iterator[Entry]:
    """The files of all campaigns."""
    for campaign in filter(layout.is_campaign, storage.children("private/campaigns/")):
        yield from own_entries(storage, layout.served_files(campaign))


def served_hashes(storage: Storage) -> Iterator[str]:
    """The sha256 of every object that a served row names."""
    for entry in served_files(storage):
        for row in _rows(storage, entry):
            yield from filter(None, (layout.object_hash(reference.uri) for reference in references_of(row)))


def remove_old_served(storage: Storage, now: float) -> int:
    """Remove files that are older than they say they are kept; how many. Their objects go as all go that nothing names."""
    removed = 0
    for entry in list(served_files(storage)):
        age = (now - entry.modified) / _DAY
        if age > 1 and age > _kept_days(storage, entry):
            storage.delete(entry.key)
            removed += 1
    return removed


def forget_served(storage: Storage, keys: Iterable[str], users: Collection[str]) -> set[str]:
    """Remove those of some served files that are of these users; the keys of the objects that they named."""
    uris: set[str] = set()
    for key in keys:
        stored = storage.get(key)
        rows = from_parquet(stored.data).to_pylist() if stored else []
        if any(row["user_id"] in users for row in rows):
            uris.update(reference.uri for row in rows for reference in references_of(row) if reference.is_well_formed)
            storage.delete(key)
    return uris


def is_served_row(key: str) -> bool:
    """Whether a key is that of a served row."""
    folder, _, name = key.rpartition("/")
    return folder.endswith("/served") and _ROW_FILE.fullmatch(name) is not None


def _rows(storage: Storage, entry: Entry) -> list[Row]:
    stored = storage.get(entry.key) if is_served_row(entry.key) else None
    try:
        return from_parquet(stored.data, COLUMNS).to_pylist() if stored else []
    except pa.ArrowInvalid as error:
        raise StoreError(f"{storage.address(entry.key)}: is no table, so nobody knows what it names; remove it ({error})") from None


def _kept_days(storage: Storage, entry: Entry) -> float:
    """As the file says."""
    stored = storage.get(entry.key)
    metadata = (from_parquet(stored.data).schema.metadata or {}) if stored else {}
    return float(metadata.get(_KEEP_DAYS, KEEP_DAYS))
