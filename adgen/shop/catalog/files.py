"""A catalog's files in the store: written once under their hash, named by an index that is itself named by its hash.

Whoever holds an index always reads the same catalog. `<name>.json` next to the indexes says which one was written last
for a campaign; it is only where the next catalog starts from, so losing a race for it loses nothing.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from adgen.creatives import layout
from adgen.creatives.documents import Document, parse_document
from adgen.creatives.names import own_entries
from adgen.creatives.storage import Storage, Taken
from adgen.errors import StoreError
from adgen.shop.catalog.rows import FACT_NAMES, ID_NAMES, join_rows


class CatalogFile(Document):
    """One Arrow IPC file of one record batch."""

    sha256: str
    rows: int
    bytes: int


class CatalogBucket(Document):
    """A range of product keys: `ids` is for the workers, `facts` for the planner."""

    number: int
    ids: CatalogFile
    facts: CatalogFile


class CatalogIndex(Document):
    """All files of a catalog, in the order of their keys."""

    schema_version: int = 1
    model_digest: str
    embedding: str
    embedding_size: int
    num_buckets: int
    buckets: tuple[CatalogBucket, ...]

    @property
    def name(self) -> str:
        """What `open_catalog` and plan.json call it."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


class LastIndex(Document):
    """The newest index of a campaign; `turn` grows, so that its bytes never repeat."""

    index: str
    turn: int


def write_bucket(storage: Storage, model_digest: str, number: int, parts: Iterable[pa.Table]) -> CatalogBucket:
    """Store one bucket's rows (of `changed_products` and `encode_products`); its entry for `write_catalog`."""
    rows = join_rows(parts)
    ids = rows.select(ID_NAMES).filter(rows["codes"].is_valid()).combine_chunks()
    facts = rows.select([*FACT_NAMES, "embedding"])
    return CatalogBucket(
        number=number, ids=_write_file(storage, model_digest, ids), facts=_write_file(storage, model_digest, facts)
    )


def write_catalog(
    storage: Storage, model_digest: str, name: str, buckets: Iterable[CatalogBucket], num_buckets: int, embedding: str, size: int
) -> CatalogIndex:
    """Store the index, after all its files, and make it `name`'s (a campaign's) newest."""
    ordered = tuple(sorted(buckets, key=lambda bucket: bucket.number))
    index = CatalogIndex(
        model_digest=model_digest, embedding=embedding, embedding_size=size, num_buckets=num_buckets, buckets=ordered
    )
    with suppress(Taken):
        storage.create(index_key(model_digest, index.name), index.to_bytes())
    last, etag = _last(storage, model_digest, name)
    if last is None or last.index != index.name:
        with suppress(Taken):  # another driver of the campaign was faster: its index is as good a start
            document = LastIndex(index=index.name, turn=last.turn + 1 if last else 1)
            storage.swap_or_find(_last_key(model_digest, name), document.to_bytes(), etag)
    return index


def read_index(storage: Storage, model_digest: str, index_name: str) -> CatalogIndex:
    """The index of that name; StoreError if it is not there or not what its name says."""
    key = index_key(model_digest, index_name)
    index = parse_document(CatalogIndex, storage.read(key), storage.address(key))
    if index.name != index_name:
        raise StoreError(f"{storage.address(key)}: is not what its name says; start a new run")
    return index


def last_index(storage: Storage, model_digest: str, name: str) -> CatalogIndex | None:
    """The index that `name` (a campaign) wrote last; None the first time."""
    last, _ = _last(storage, model_digest, name)
    return read_index(storage, model_digest, last.index) if last else None


def fetch_file(storage: Storage, model_digest: str, file: CatalogFile, cache_dir: str | Path) -> Path:
    """The file in the node's cache folder, fetched once. Any number of processes may do this at once."""
    path = Path(cache_dir) / f"{file.sha256}.arrow"
    if _is_right(path, file):
        return path
    key = _file_key(model_digest, file.sha256)
    data = storage.read(key)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise StoreError(f"{storage.address(key)}: is not what the catalog's index says; start a new run")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".fetching-")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def last_names(storage: Storage, model_digest: str) -> dict[str, str]:
    """The newest index of each campaign that used the model."""
    folder = f"{layout.catalog(model_digest)}last/"
    names = {entry.key.removeprefix(folder).partition("/")[0].removesuffix(".json") for entry in own_entries(storage, folder)}
    found = {name: _last(storage, model_digest, name)[0] for name in sorted(names)}
    return {name: last.index for name, last in found.items() if last}


def drop_last(storage: Storage, model_digest: str, name: str) -> None:
    """Forget which index is the campaign's newest: its next catalog starts from nothing."""
    storage.drop(_last_key(model_digest, name))


def named_keys(index: CatalogIndex) -> set[str]:
    """The keys of an index and of its files."""
    files = (file for bucket in index.buckets for file in (bucket.ids, bucket.facts))
    return {index_key(index.model_digest, index.name), *(_file_key(index.model_digest, file.sha256) for file in files)}


def _is_right(path: Path, file: CatalogFile) -> bool:
    """Whether the cached file is there and holds what its name says."""
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_size == file.bytes and _hash_of(path, found.st_size, found.st_mtime_ns, found.st_ino) == file.sha256


@lru_cache(maxsize=4096)
def _hash_of(path: Path, *_: int) -> str:
    """Once a process for a file that did not change: bucket tasks open the same ones again and again."""
    with open(path, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _write_file(storage: Storage, model_digest: str, table: pa.Table) -> CatalogFile:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    file = CatalogFile(sha256=hashlib.sha256(data).hexdigest(), rows=table.num_rows, bytes=len(data))
    with suppress(Taken):
        storage.create(_file_key(model_digest, file.sha256), data)
    return file


def _last(storage: Storage, model_digest: str, name: str) -> tuple[LastIndex | None, str | None]:
    key = _last_key(model_digest, name)
    stored = storage.get(key)
    return (parse_document(LastIndex, stored.data, storage.address(key)), stored.etag) if stored else (None, None)


def _file_key(model_digest: str, sha256: str) -> str:
    return f"{layout.catalog(model_digest)}files/{sha256}.arrow"


def index_key(model_digest: str, index_name: str) -> str:
    """Where the index of that name lies."""
    return f"{layout.catalog(model_digest)}indexes/{index_name}.json"


def _last_key(model_digest: str, name: str) -> str:
    return f"{layout.catalog(model_digest)}last/{layout.checked_campaign(name)}.json"
