"""What a consumer on S3 does: bring a folder to the state of the published run, fetching only what is not there.

The folder mirrors the store, so the other reading commands work on it. Objects come first, then the manifest, then
run.json, then latest.json: a reader of the folder sees the run pulled before until everything of the new one is there.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import pyarrow as pa

from adgen.creatives import layout
from adgen.creatives.documents import ManifestFile
from adgen.creatives.folder import FolderStorage
from adgen.creatives.journal import from_parquet
from adgen.creatives.reading import ManifestReader, PublishedRun, open_published, open_run
from adgen.creatives.references import COLUMNS, Reference, inspect, is_content, references_of
from adgen.creatives.storage import Storage
from adgen.errors import ConsumerError

THREADS = 32
_ROWS_AT_ONCE = 4096


@dataclass
class Pulled:
    """What a pull did. `changed_rows` name an object that the run given as `since` did not."""

    run_id: str
    generation: int
    rows: int = 0
    changed_rows: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    present: int = 0


class _Pull:
    def __init__(self, published: PublishedRun, folder: FolderStorage, known: set[bytes], threads: int):
        self.published, self.folder, self.known, self.threads = published, folder, known, threads
        self.done = Pulled(published.run.run_id, published.pointer.generation)
        self.problems: list[str] = []
        self._lock = Lock()

    def objects(self) -> None:
        """Fetch the objects of every row, file by file."""
        with ThreadPoolExecutor(self.threads) as pool:
            for file in self.published.run.manifest:
                table = from_parquet(self.manifest_bytes(file)).select(COLUMNS)
                for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
                    for _ in pool.map(self.fetch, self._wanted(batch)):
                        pass

    def manifest_bytes(self, file: ManifestFile) -> bytes:
        """From the folder if it is there and right, else from the store and kept in the folder."""
        try:
            return ManifestReader(self.folder, self.published.run).file_bytes(file)
        except ConsumerError:
            data = self.published.file_bytes(file)
            self.folder.put(file.key, data)
            return data

    def fetch(self, reference: Reference) -> None:
        """Bring one object into the folder unless it is there and right; a problem is noted, not raised."""
        if not reference.is_well_formed:
            self._note(f"{reference.uri!r} is not the key of an object")
        elif inspect(self.folder, reference) == "ok":
            self._count(present=1)
        else:
            stored = self.published.storage.get(reference.uri)
            if stored is None or not is_content(stored.data, reference):
                self._note(f"{reference.uri} is {'missing' if stored is None else 'not what its row says'}")
                return
            self.folder.put(reference.uri, stored.data)
            self._count(fetched=1, fetched_bytes=len(stored.data))

    def _wanted(self, batch: pa.RecordBatch) -> list[Reference]:
        wanted: dict[Reference, None] = {}
        for row in batch.to_pylist():
            new = [reference for reference in references_of(row) if _hash_of(reference) not in self.known]
            self.done.rows += 1
            self.done.changed_rows += bool(new)
            wanted.update(dict.fromkeys(new))
        return list(wanted)

    def _count(self, **steps: int) -> None:
        with self._lock:
            for name, step in steps.items():
                setattr(self.done, name, getattr(self.done, name) + step)

    def _note(self, problem: str) -> None:
        with self._lock:
            self.problems.append(problem)


def pull(storage: Storage, campaign: str, destination: str | Path, since: str | None = None, threads: int = THREADS) -> Pulled:
    """Mirror the campaign's published run into the folder `destination`; what was done.

    `since` is a run whose objects the consumer has already: they are not fetched. Every object is checked by sha256.
    ConsumerError, and the folder's latest.json stays, if an object is missing or differs; what is right is kept, so
    that the next pull goes on.
    """
    published = open_published(storage, campaign)
    folder = FolderStorage(destination)
    if "latest" in folder.children(f"{layout.CAMPAIGNS}{campaign}/"):
        raise ConsumerError(f"{destination}: is a store that refreshes write to; pull into another folder")
    known = _known_hashes(open_run(storage, campaign, since)) if since else set()
    work = _Pull(published, folder, known, threads)
    work.objects()
    if work.problems:
        raise ConsumerError(
            f"run {published.run.run_id} of campaign {campaign}: {len(work.problems)} objects cannot be pulled, first: "
            f"{work.problems[0]}; pull again, and if that does not help, run `adgen verify`"
        )
    folder.put(layout.run_document(campaign, published.run.run_id), published.run.to_bytes())
    folder.put(layout.pointer(campaign), published.pointer.to_bytes())
    return work.done


def _known_hashes(reader: ManifestReader) -> set[bytes]:
    """32 bytes for each object of the run: some hundred MB for some millions."""
    known = set()
    for table in reader.tables():
        for batch in table.select(COLUMNS).to_batches(max_chunksize=_ROWS_AT_ONCE):
            known.update(_hash_of(reference) for row in batch.to_pylist() for reference in references_of(row))
    return known


def _hash_of(reference: Reference) -> bytes:
    sha256 = layout.object_hash(reference.uri)
    return bytes.fromhex(sha256) if sha256 else b""
