"""Objects that a run names and that are not in the store any more: their rows cannot be carried, and are made again."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from adgen.creatives import layout
from adgen.creatives.hash_files import HashFiles
from adgen.creatives.journal import Journal
from adgen.creatives.references import COLUMNS, Reference, references_of
from adgen.creatives.storage import Storage

HEADS_BELOW = 50_000  # rows; for more, one listing of all objects is cheaper than a request for each
THREADS = 32
_PARTS_IN_FLIGHT = 16
_RECORD_BYTES = 32 + 8  # an object's hash and size


def lost_objects(run: Journal) -> pa.Array:
    """The sha256 (hex, sorted) of each object that the run's journal names and that is not there, or not as long as it was.

    Asks for each object of a small run; of a large one compares a listing of the store with what the run names, on disk.
    """
    small = run.read_plan().rows < HEADS_BELOW
    lost = _lost_by_head(run) if small else _lost_by_listing(run)
    return pa.array(sorted(lost), pa.string())


def _lost_by_head(run: Journal) -> set[str]:
    def is_lost(reference: Reference) -> bool:
        found = run.storage.head(reference.uri)
        return found is None or found.size != reference.bytes

    with ThreadPoolExecutor(THREADS) as pool:
        references = list(set(_references(run)))
        return {each.sha256 for each, lost in zip(references, pool.map(is_lost, references), strict=True) if lost}


def _lost_by_listing(run: Journal) -> set[str]:
    with tempfile.TemporaryDirectory(prefix="adgen-objects-") as folder:
        there, named = (HashFiles(Path(folder) / name, _RECORD_BYTES) for name in ("there", "named"))
        there.add(_listed(run.storage))
        named.add(_record(each.sha256, each.bytes) for each in _references(run))
        return {record[:32].hex() for record in named.without(there)}


def _listed(storage: Storage) -> Iterator[bytes]:
    for entry in storage.entries(layout.OBJECTS):
        if sha256 := layout.object_hash(entry.key):
            yield _record(sha256, entry.size)


def _record(sha256: str, size: int) -> bytes:
    return bytes.fromhex(sha256) + size.to_bytes(8, "big")


def _references(run: Journal) -> Iterator[Reference]:
    """What the run's committed rows name, repeats included; some parts are fetched ahead."""
    indexes = sorted(run.done())
    with ThreadPoolExecutor(_PARTS_IN_FLIGHT) as pool:
        for start in range(0, len(indexes), _PARTS_IN_FLIGHT):
            for table in pool.map(run.read_part, indexes[start : start + _PARTS_IN_FLIGHT]):
                for batch in table.select(COLUMNS).to_batches(max_chunksize=4096):
                    for row in batch.to_pylist():
                        yield from (each for each in references_of(row) if each.is_well_formed and each.bytes is not None)
