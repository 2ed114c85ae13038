"""What a consumer on S3 does: bring a folder to the state of the published run, fetching only what is not there.

The folder mirrors the store, so the other reading commands work on it. Objects come first, then the manifest, then
run.json, then latest.json: a reader of the folder sees the run pulled before until everything of the new one is there.
Last go the creatives that only earlier pulls named: withdrawn products and erased users must not stay with consumers. One
pull at a time works on a folder, so that none takes what another needs, and none moves it back.
"""

import fcntl
import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.parquet as pq

from adgen.creatives import layout
from adgen.creatives.ahead import map_ahead
from adgen.creatives.documents import Pointer, parse_document
from adgen.creatives.folder import FolderStorage
from adgen.creatives.hash_files import SHARDS, HashFiles
from adgen.creatives.parts import ManifestParts
from adgen.creatives.reading import ManifestReader, PublishedRun, is_wanted, open_published, open_run
from adgen.creatives.references import COLUMNS, Reference, inspect, references_of
from adgen.creatives.storage import Storage
from adgen.errors import ConsumerError, StoreError

THREADS = 32
MAX_PROBLEMS = 10_000
_ROWS_AT_ONCE = 4096
_COLUMNS = ("rank", *COLUMNS)
_LOCK = ".pull.lock"
_OBJECT_BYTES = 32 + 8  # a hash and an extension
_WANTED_BYTES = _OBJECT_BYTES + 8 + 8  # the size that a row says, and the row's number


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
    """One pull's work. What must be known of every object lies in `scratch`, on disk: memory does not grow with the campaign."""

    def __init__(self, published: PublishedRun, folder: FolderStorage, scratch: Path, threads: int, variants: int | None):
        self.published, self.folder, self.threads, self.variants = published, folder, threads, variants
        self.known = HashFiles(scratch / "known", _OBJECT_BYTES)
        self.wanted = HashFiles(scratch / "wanted", _WANTED_BYTES)
        self.named = HashFiles(scratch / "named", _OBJECT_BYTES)
        self.suspected = HashFiles(scratch / "suspected", _OBJECT_BYTES)
        self.leaves_some_out = False
        self.done = Pulled(published.run.run_id, published.pointer.generation)
        self._changed = bytearray(published.run.counts.rows + 1)  # rows that name what `known` lacks
        self._lock = Lock()

    def know(self, storage: Storage, run_id: str) -> None:
        """Take the objects of an older run as there; where it cannot be read all is compared, and the note says so."""
        known = HashFiles(self.known.folder.with_name("known since"), _OBJECT_BYTES)
        try:
            for table in open_run(storage, self.published.run.campaign, run_id).tables(_COLUMNS):
                known.add(_records_in([table], self.variants))
            self.known = known
        except ConsumerError as error:
            why = f"since run {run_id} cannot be read (erased or cleaned up?): {error}"
            self.done.note = f"everything was compared, {why}"

    def manifest(self) -> None:
        """Bring the run's manifest into the folder, where nothing names it yet."""
        parts = ManifestParts(self.folder, self.published.run.manifest)
        for file in parts.files:
            if not parts.has(file):
                ManifestParts(self.published.storage, ()).mirror(file, self.folder)

    def objects(self) -> None:
        """Fetch what the rows name and `known` lacks, in the order of its hashes."""
        for table in ManifestReader(self.folder, self.published.run).tables(_COLUMNS):
            self.wanted.add(self._wanted(table))
        for _ in map_ahead(self.fetch, self._missing(), self.threads):
            pass
        self.done.changed_rows = sum(self._changed)

    def _wanted(self, table: pa.Table) -> Iterator[bytes]:
        for row in table.to_pylist():
            if not is_wanted(row, self.variants):
                self.leaves_some_out = True
                continue
            number, self.done.rows = self.done.rows, self.done.rows + 1
            for reference in references_of(row):
                if reference.is_well_formed:
                    yield _record(reference) + (reference.bytes or 0).to_bytes(8, "big") + number.to_bytes(8, "big")
                else:
                    self._changed[number] = 1
                    self._note(f"{reference.uri!r} is not the key of an object")

    def _missing(self) -> Iterator[Reference]:
        for shard in SHARDS:
            known, found = self.known.read(shard), {}
            for record in self.wanted.read(shard):
                if record[:_OBJECT_BYTES] not in known:
                    self._changed[int.from_bytes(record[-8:], "big")] = 1
                    found[record[:-8]] = None
            for record in sorted(found):
                yield Reference(_uri(record), record[:32].hex(), int.from_bytes(record[_OBJECT_BYTES:], "big"))

    def fetch(self, reference: Reference) -> None:
        """Bring one object into the folder unless it is there and right; a problem is noted, not raised."""
        if inspect(self.folder, reference)[0] == "ok":
            self._count(present=1)
            return
        outcome, data = inspect(self.published.storage, reference)
        if outcome != "ok":
            self._note(f"{reference.uri} is {'missing' if outcome == 'missing' else 'not what its row says'}")
            return
        self.folder.put(reference.uri, data)
        self._count(fetched=1, fetched_bytes=len(data))

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
        suspects = [*old, *(current if self.leaves_some_out else ())]
        for key in (*current, *others) if suspects else ():
            if not _is_whole(self.folder, key):
                raise ConsumerError(f"{self.folder.address(key)}: is damaged, so nothing was removed; pull its campaign again")
            self.named.add(_records(self.folder, key, self.variants if key in current else None))
        for key in suspects:
            if _is_whole(self.folder, key):
                self.suspected.add(_records(self.folder, key, None))
        for record in self.suspected.without(self.named):
            if self.folder.head(_uri(record)) is not None:
                self.done.withdrawn += 1
                keep or self.folder.delete(_uri(record))
        for key in () if keep else old:
            self.folder.delete(key)
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
        with tempfile.TemporaryDirectory(prefix="adgen-pull-") as scratch:
            work = _Pull(published, folder, Path(scratch), threads, variants)
            if since:
                work.know(storage, since)
            work.manifest()
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


def _is_whole(folder: FolderStorage, key: str) -> bool:
    """Whether a manifest file in the folder is what its name says; of another it is not known what it names."""
    with open(folder.local_path(key), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16] == layout.manifest_file_hash(key)


def _records(folder: FolderStorage, key: str, variants: int | None) -> Iterator[bytes]:
    """Each object that a manifest file in the folder names, of a pair's first `variants`."""
    with pq.ParquetFile(folder.local_path(key)) as file:
        batches = file.iter_batches(_ROWS_AT_ONCE, columns=list(_COLUMNS), use_threads=False)
        yield from _records_in((pa.Table.from_batches([batch]) for batch in batches), variants)


def _records_in(tables: Iterable[pa.Table], variants: int | None) -> Iterator[bytes]:
    for table in tables:
        for row in table.to_pylist():
            if is_wanted(row, variants):
                yield from (_record(reference) for reference in references_of(row) if reference.is_well_formed)


def _record(reference: Reference) -> bytes:
    """An object as HashFiles keep it: its hash and its extension."""
    return bytes.fromhex(reference.sha256) + reference.uri.rpartition(".")[2].encode().ljust(8, b"\0")


def _uri(record: bytes) -> str:
    return layout.object_key(record[:32].hex(), record[32:_OBJECT_BYTES].rstrip(b"\0").decode())
