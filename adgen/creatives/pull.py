"""What a consumer on S3 does: bring a folder to the state of the published run, fetching only what is not there.

The folder mirrors the store, so the other reading commands work on it. Objects come first, then the manifest, then
run.json, then latest.json: a reader of the folder sees the run pulled before until everything of the new one is there.
Last go the creatives that only earlier pulls named: withdrawn products and erased users must not stay with consumers. One
pull at a time works on a folder, so that none takes what another needs, and none moves it back.
"""

import fcntl
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import pyarrow as pa

from adgen.creatives import layout
from adgen.creatives.documents import ManifestFile, Pointer, parse_document
from adgen.creatives.folder import FolderStorage
from adgen.creatives.journal import from_parquet
from adgen.creatives.reading import ManifestReader, PublishedRun, is_wanted, open_published, open_run
from adgen.creatives.references import COLUMNS, Reference, inspect, is_content, references_of
from adgen.creatives.storage import Storage
from adgen.errors import ConsumerError, StoreError

THREADS = 32
MAX_PROBLEMS = 10_000
_ROWS_AT_ONCE = 4096
_COLUMNS = ("rank", *COLUMNS)
_LOCK = ".pull.lock"


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
    unavailable: int = 0
    """Objects that are not in the store, or not what their row says; `problems` names them."""
    withdrawn: int = 0
    """Files of creatives that earlier pulls brought and the run no longer names; removed unless they were to be kept."""
    note: str = ""
    problems: list[str] = field(default_factory=list)


class _Pull:
    def __init__(self, published: PublishedRun, folder: FolderStorage, known: set[bytes], threads: int, variants: int | None):
        self.published, self.folder, self.known, self.threads, self.variants = published, folder, known, threads, variants
        self.leaves_some_out = False
        self.done = Pulled(published.run.run_id, published.pointer.generation)
        self._lock = Lock()

    def objects(self) -> None:
        """Fetch the objects of every row, file by file."""
        with ThreadPoolExecutor(self.threads) as pool:
            for file in self.published.run.manifest:
                table = from_parquet(self.manifest_bytes(file)).select(_COLUMNS)
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
        elif inspect(self.folder, reference)[0] == "ok":
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
            if not is_wanted(row, self.variants):
                self.leaves_some_out = True
                continue
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
            self.done.unavailable += 1
            if len(self.done.problems) < MAX_PROBLEMS:
                self.done.problems.append(problem)

    def show(self) -> None:
        """Make the run the one that the folder's latest.json names."""
        run = self.published.run
        self.folder.put(layout.run_document(run.campaign, run.run_id), run.to_bytes())
        self.folder.put(layout.pointer(run.campaign), self.published.pointer.to_bytes())

    def withdraw(self, keep: bool) -> None:
        """Remove what earlier pulls brought and nothing names now, the manifests that name it last: killed, the next pull goes
        on. Only objects that a manifest of the campaign names go, and none that another campaign pulled into this folder names.
        Where only some variants were asked for, the others of the run are as withdrawn."""
        current = {file.key for file in self.published.run.manifest}
        old, others = [], []
        for entry in self.folder.entries(layout.CAMPAIGNS):
            if layout.manifest_file_hash(entry.key) and entry.key not in current:
                (old if entry.key.startswith(layout.runs(self.published.run.campaign)) else others).append(entry.key)
        wanted = (_objects_in(self.folder, key, variants=self.variants) for key in current)
        suspects = [*old, *(current if self.leaves_some_out else ())]
        named = set().union(*wanted, *(_objects_in(self.folder, key) for key in others)) if suspects else set()
        for key in suspects:
            for uri in {uri for sha256, uri in _objects_in(self.folder, key, trusted_only=True).items() if sha256 not in named}:
                if self.folder.head(uri) is not None:
                    self.done.withdrawn += 1
                    keep or self.folder.delete(uri)
            keep or key in current or self.folder.delete(key)
        if not keep:
            self._remove_old_runs()

    def _remove_old_runs(self) -> None:
        run = self.published.run
        for run_id in set(self.folder.children(layout.runs(run.campaign))) - {run.run_id}:
            with suppress(StoreError):  # a folder that no pull made
                document = self.folder.root / layout.run_document(run.campaign, run_id)
                self.folder.delete(layout.run_document(run.campaign, run_id))
                for empty in (document.with_name("manifest"), document.parent):
                    with suppress(OSError):  # it holds what is not ours
                        empty.rmdir()


def pull(
    storage: Storage,
    campaign: str,
    destination: str | Path,
    since: str | None = None,
    threads: int = THREADS,
    keep_withdrawn: bool = False,
    variants: int | None = 1,
) -> Pulled:
    """Mirror the campaign's published run into the folder `destination`; what was done.

    Of each pair the creatives of the first `variants` ranks are fetched, None: all; the manifest is always whole.

    `since` is a run whose objects the consumer has already: they are not fetched; where that run is gone from the store
    everything is compared, and `note` says so. Every object is checked by sha256. One that is missing or differs is named in
    `problems`, and the rest is pulled. ConsumerError, and the folder stays as it is, where a manifest file cannot be read, or
    the folder holds a later state of the campaign than the store. Waits while another pull works on the folder.
    """
    folder = FolderStorage(destination)
    if "latest" in folder.children(f"{layout.CAMPAIGNS}{layout.checked_campaign(campaign)}/"):
        raise ConsumerError(f"{destination}: is a store that refreshes write to; pull into another folder")
    with _alone(folder.root):
        published = open_published(storage, campaign)
        _check_forward(folder, published)
        known, note = _known_hashes(storage, campaign, since, variants) if since else (set(), "")
        work = _Pull(published, folder, known, threads, variants)
        work.done.note = note
        work.objects()
        work.show()
        work.withdraw(keep_withdrawn)
    return work.done


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """While this holds no other pull works on the folder; a killed one leaves no lock."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / _LOCK).touch()
    except OSError as error:
        raise ConsumerError(f"{root}: {error.strerror}; pull into a folder that you may write to") from None
    with open(root / _LOCK, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_forward(folder: FolderStorage, published: PublishedRun) -> None:
    key = layout.pointer(published.run.campaign)
    stored = folder.get(key)
    try:
        there = stored and parse_document(Pointer, stored.data, folder.address(key))
    except StoreError:
        return  # what is no pointer is written anew
    if there and there.generation > published.pointer.generation:
        raise ConsumerError(
            f"{folder.uri}: holds generation {there.generation} of campaign {published.run.campaign}, and {published.storage.uri} "
            f"is at {published.pointer.generation}; it is an older copy of the store, or another one: pull into another folder"
        )


def _objects_in(folder: FolderStorage, key: str, trusted_only: bool = False, variants: int | None = None) -> dict[bytes, str]:
    """Hash to key of each object that a manifest file in the folder names, of a pair's first `variants`. A file that is not what
    its name says names nothing where `trusted_only`, or else is a ConsumerError: what it names is not known."""
    data = folder.read(key)
    if hashlib.sha256(data).hexdigest()[:16] != layout.manifest_file_hash(key):
        if trusted_only:
            return {}
        raise ConsumerError(f"{folder.address(key)}: is damaged, so nothing was removed; pull its campaign again")
    found = _references(from_parquet(data), variants)
    return {_hash_of(reference): reference.uri for reference in found if reference.is_well_formed}


def _references(table: pa.Table, variants: int | None) -> Iterator[Reference]:
    for batch in table.select(_COLUMNS).to_batches(max_chunksize=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            if is_wanted(row, variants):
                yield from references_of(row)


def _known_hashes(storage: Storage, campaign: str, run_id: str, variants: int | None) -> tuple[set[bytes], str]:
    """32 bytes for each object of the run (some hundred MB for some millions), and a word where the run is gone."""
    try:
        reader = open_run(storage, campaign, run_id)
        return {_hash_of(reference) for table in reader.tables() for reference in _references(table, variants)}, ""
    except ConsumerError as error:
        return set(), f"everything was compared, since run {run_id} cannot be read (erased or cleaned up?): {error}"


def _hash_of(reference: Reference) -> bytes:
    sha256 = layout.object_hash(reference.uri)
    return bytes.fromhex(sha256) if sha256 else b""
