"""What a consumer reads: pointer, run.json, manifest files, objects. Each step names the next; nothing is listed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adgen.creatives import layout
from adgen.creatives.documents import ManifestFile, Pointer, RunDocument, parse_document
from adgen.creatives.journal import from_parquet
from adgen.creatives.storage import Storage
from adgen.errors import ConsumerError
from adgen.records import MANIFEST, MANIFEST_SCHEMA_VERSION, with_later_columns


def is_wanted(row: dict[str, Any], variants: int | None) -> bool:
    """Whether a row is among the first `variants` of its pair by rank; None: all are."""
    return variants is None or (row["rank"] or 0) < variants


@dataclass(frozen=True)
class ManifestReader:
    """One run's manifest: a complete snapshot of the campaign's creatives."""

    storage: Storage
    run: RunDocument

    def file_bytes(self, file: ManifestFile) -> bytes:
        """A manifest file's bytes; ConsumerError if it is gone or not what run.json says."""
        stored = self.storage.get(file.key)
        if stored is None:
            raise ConsumerError(f"{self.storage.address(file.key)}: is gone; read latest.json again")
        if len(stored.data) != file.bytes or hashlib.sha256(stored.data).hexdigest() != file.sha256:
            raise ConsumerError(f"{self.storage.address(file.key)}: differs from what run.json says of it")
        return stored.data

    def table(self, file: ManifestFile) -> pa.Table:
        """A manifest file's rows; ConsumerError if they are of a schema that this version does not know."""
        table = from_parquet(self.file_bytes(file))
        version = pc.max(table["schema_version"]).as_py() if table.num_rows else MANIFEST_SCHEMA_VERSION
        address = self.storage.address(file.key)
        if version > MANIFEST_SCHEMA_VERSION:
            raise ConsumerError(f"{address}: has manifest schema {version}; update adgen to read it")
        try:
            return with_later_columns(table, MANIFEST).select(MANIFEST.names)
        except ValueError as error:
            raise ConsumerError(f"{address}: not a manifest: {error}") from None

    def tables(self) -> Iterator[pa.Table]:
        """All rows, file by file, ordered by user_key."""
        for file in self.run.manifest:
            yield self.table(file)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows one by one, as dicts."""
        for table in self.tables():
            for batch in table.to_batches(max_chunksize=1024):
                yield from batch.to_pylist()

    def find(self, pair_id: str) -> list[dict[str, Any]]:
        """The rows of one pair, by variant. Reads the manifest up to the file that holds it."""
        for table in self.tables():
            found = table.filter(pc.equal(table["pair_id"], pair_id))
            if found.num_rows:
                return found.sort_by("variant").to_pylist()
        return []

    def of_user(self, user_key: str) -> list[dict[str, Any]]:
        """The rows of one user, best rank first; reads only files whose key range holds the user."""
        rows = []
        for file in self.run.manifest:
            if file.first_user_key <= user_key <= file.last_user_key:
                table = self.table(file)
                rows += table.filter(pc.equal(table["user_key"], user_key)).to_pylist()
        return sorted(rows, key=lambda row: (row["rank"] is None, row["rank"], row["pair_id"], row["variant"]))


@dataclass(frozen=True)
class PublishedRun(ManifestReader):
    """The manifest of the run that the pointer names."""

    pointer: Pointer


def open_published(storage: Storage, campaign: str) -> PublishedRun:
    """What the campaign's pointer names now; ConsumerError if nothing is published or run.json is not the one named."""
    key = layout.pointer(campaign)
    stored = storage.get(key)
    if stored is None:
        raise ConsumerError(f"{storage.address(key)}: campaign {campaign} has nothing published")
    pointer = parse_document(Pointer, stored.data, storage.address(key))
    run = open_run(storage, campaign, pointer.run_id).run
    if not run.has_manifest_digest(pointer.manifest_digest):
        raise ConsumerError(f"run {run.run_id}: its list of manifest files is not the one that was published")
    return PublishedRun(storage, run, pointer)


def open_run(storage: Storage, campaign: str, run_id: str) -> ManifestReader:
    """A sealed run, published or not; ConsumerError if it is not there or has no manifest yet."""
    key = layout.run_document(campaign, run_id)
    stored = storage.get(key)
    if stored is None:
        raise ConsumerError(f"{storage.address(key)}: there is no such run")
    run = parse_document(RunDocument, stored.data, storage.address(key))
    if run.counts is None:
        raise ConsumerError(f"run {run_id} of campaign {campaign} is {run.state} and has no manifest yet")
    return ManifestReader(storage, run)
