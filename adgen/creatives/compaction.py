"""Journal parts to manifest files: one sort of the whole run by (user_key, pair_id, variant), in bounded memory.

Rows are sorted in chunks and spilled to local files. Samples of the spilled keys cut the key space into ranges that fit
in memory; each range is gathered from all chunks, sorted, and appended to the manifest. The files' bytes depend on the
rows alone, not on their order in the journal nor on the chunk size, so a compaction done again makes the same files.
"""

import bisect
import hashlib
import mmap
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adgen.creatives import layout
from adgen.creatives.documents import Counts, ManifestFile, Plan
from adgen.creatives.journal import Journal, planned_rows, without_pairs
from adgen.creatives.storage import Storage, Taken
from adgen.errors import RunError
from adgen.records import FAILED, MANIFEST, OK, REJECTED, bound_key, with_public_fingerprints

ROWS_PER_FILE = 1_000_000
ROWS_IN_MEMORY = 65_536
_ROWS_PER_GROUP = 2_048  # of a Parquet file: what a reader of one user fetches and decodes, half a MB
_SAMPLES_PER_RANGE = 64
_PARTS_IN_FLIGHT = 16
_MOST_CHUNKS = 256
_ROWS_PER_READ = 512
_ORDER = [("user_key", "ascending"), ("pair_id", "ascending"), ("variant", "ascending")]

SortKey = tuple[str, str, int]


def compact(
    journal: Journal,
    plan: Plan,
    rows_per_file: int = ROWS_PER_FILE,
    rows_in_memory: int = ROWS_IN_MEMORY,
    without: Collection[str] = (),
) -> tuple[tuple[ManifestFile, ...], Counts]:
    """Write the run's manifest files from its whole journal; the files and the counts for run.json. `without` are pairs that
    are left out.

    RunError if a shard is not done, or if two shards hold the same (pair_id, variant).
    """
    if missing := journal.unfinished(plan):
        raise RunError(f"run {journal.run_id}: {len(missing)} of {len(plan.parts)} shards are not done; resume it first")
    # At most some hundred chunks, so that as many open files and buffers are enough for a billion rows.
    rows_in_memory = max(rows_in_memory, plan.rows // _MOST_CHUNKS)
    with tempfile.TemporaryDirectory(prefix="adgen-compaction-") as folder, ExitStack() as opened:
        paths, samples = _spill(_committed_rows(journal, plan, without), Path(folder), rows_in_memory)
        chunks = [_Chunk(opened.enter_context(pa.OSFile(str(path)))) for path in paths]
        writer = ManifestWriter(journal.storage, journal.campaign, journal.run_id, Path(folder), rows_per_file)
        for cut in [*sorted(samples)[_SAMPLES_PER_RANGE::_SAMPLES_PER_RANGE], None]:
            if pieces := [piece for chunk in chunks for piece in chunk.take_before(cut)]:
                writer.write(_checked_unique(pa.concat_tables(pieces).sort_by(_ORDER)))
        return writer.close()


class ManifestWriter:
    """Cuts sorted tables into manifest files and uploads each as it fills up."""

    def __init__(self, storage: Storage, campaign: str, run_id: str, folder: Path, rows_per_file: int = ROWS_PER_FILE):
        self.storage, self.campaign, self.run_id = storage, campaign, run_id
        self.rows_per_file = rows_per_file
        self._path = folder / "manifest.parquet"
        self._pending = MANIFEST.empty_table()  # less than a row group
        self._parquet: pq.ParquetWriter | None = None
        self._rows = 0  # in the open file, without the pending ones
        self._bounds = ["", ""]
        self._files: list[ManifestFile] = []
        self._tally: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._last_pair: str | None = None
        self._seconds: float | None = None  # none was said

    def write(self, table: pa.Table) -> None:
        """Append rows; tables must come in order."""
        self._count(table)
        while table.num_rows:
            group = min(_ROWS_PER_GROUP, self.rows_per_file - self._rows)
            room = group - self._pending.num_rows
            self._pending = pa.concat_tables([self._pending, table.slice(0, room)])
            table = table.slice(room)
            if self._pending.num_rows == group:
                self._write_group()
            if self._rows == self.rows_per_file:
                self._upload()

    def close(self) -> tuple[tuple[ManifestFile, ...], Counts]:
        """The files written and what they hold."""
        if self._pending.num_rows:
            self._write_group()
        if self._rows:
            self._upload()
        seconds = None if self._seconds is None else round(self._seconds, 3)
        return tuple(self._files), Counts(**self._tally, engine_seconds=seconds, reasons=dict(sorted(self._reasons.items())))

    def _count(self, table: pa.Table) -> None:
        rows, carried = table.num_rows, table.num_rows - table["carried_from"].null_count
        self._tally.update(rows=rows, carried=carried, generated=rows - carried)
        self._tally["pairs"] += self._new_pairs(table)
        seconds = pc.sum(table.filter(table["carried_from"].is_null())["seconds"].cast(pa.float64())).as_py()
        self._seconds = self._seconds if seconds is None else (self._seconds or 0.0) + seconds
        self._tally["stale"] += pc.sum(table["stale"]).as_py() or 0
        for name, rows in creative_sources(table).items():
            self._tally[name] += pc.sum(rows).as_py() or 0
        for found in pc.value_counts(table["status"]).to_pylist():
            if found["values"] not in (OK, REJECTED, FAILED):
                raise RunError(f"run {self.run_id}: a row has the status {found['values']!r}")
            self._tally[found["values"]] += found["counts"]
        for found in pc.value_counts(table["reason"].drop_null()).to_pylist():
            self._reasons[found["values"]] += found["counts"]

    def _new_pairs(self, table: pa.Table) -> int:
        """Pairs in the table that were not in the one before: a pair's rows are neighbours."""
        names = [self._last_pair, *table["pair_id"].to_pylist()]
        self._last_pair = names[-1]
        return sum(name != before for before, name in pairwise(names))

    def _write_group(self) -> None:
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self._path, MANIFEST, compression="zstd", write_page_checksum=True)
            self._bounds[0] = self._pending["user_key"][0].as_py()
        self._bounds[1] = self._pending["user_key"][-1].as_py()
        self._parquet.write_table(self._pending.combine_chunks(), row_group_size=_ROWS_PER_GROUP)
        self._rows += self._pending.num_rows
        self._pending = MANIFEST.empty_table()

    def _upload(self) -> None:
        self._parquet.close()
        with open(self._path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            sha256 = hashlib.sha256(data).hexdigest()
            key = layout.manifest_file(self.campaign, self.run_id, len(self._files), sha256)
            with suppress(Taken):  # named by content: an earlier try wrote the same bytes
                self.storage.create(key, data)
            first, last = self._bounds
            self._files.append(
                ManifestFile(key=key, rows=self._rows, bytes=len(data), sha256=sha256, first_user_key=first, last_user_key=last)
            )
        self._parquet, self._rows = None, 0


def creative_sources(rows: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Which manifest rows count as what, by the name in run.json's counts."""
    ok = pc.equal(rows["status"], OK)
    return {
        "drawn_again": pc.and_(pc.not_equal(rows["status"], FAILED), pc.greater(pc.fill_null(rows["attempt"], 0), 0)),
        "templates": pc.and_(ok, pc.equal(pc.fill_null(rows["title_source"], ""), "template")),
        "plain_backgrounds": pc.and_(ok, pc.equal(pc.fill_null(rows["picture_source"], ""), "plain")),
    }


def _committed_rows(journal: Journal, plan: Plan, without: Collection[str]) -> Iterator[pa.Table]:
    """Each shard's rows, some shards fetched ahead; those that version 0.1 planned get a fingerprint that tells nothing."""
    key = bound_key(journal.tombstones.key, journal.campaign) if journal.tombstones else None
    with ThreadPoolExecutor(_PARTS_IN_FLIGHT) as pool:
        for start in range(0, len(plan.parts), _PARTS_IN_FLIGHT):
            parts = plan.parts[start : start + _PARTS_IN_FLIGHT]
            for part, table in zip(parts, pool.map(journal.read_part, [p.index for p in parts]), strict=True):
                if planned_rows(table) != part.rows or table.schema != MANIFEST:
                    raise RunError(f"run {journal.run_id}: journal part {part.index} is not what was committed")
                table = without_pairs(table, without).replace_schema_metadata(None)
                yield with_public_fingerprints(table, key) if key else table


def _spill(tables: Iterable[pa.Table], folder: Path, rows_in_memory: int) -> tuple[list[Path], list[SortKey]]:
    """Sorted chunks as local Arrow files, and keys sampled from all of them at one distance."""
    step = max(1, rows_in_memory // _SAMPLES_PER_RANGE)
    paths: list[Path] = []
    samples: list[SortKey] = []
    for pending in _batched(tables, rows_in_memory):
        chunk = pa.concat_tables(pending).sort_by(_ORDER)
        samples += [_key_at(chunk, row) for row in range(0, chunk.num_rows, step)]
        paths.append(folder / f"{len(paths)}.arrow")
        with pa.ipc.new_stream(str(paths[-1]), chunk.schema) as writer:
            writer.write_table(chunk, max_chunksize=_ROWS_PER_READ)
    return paths, samples


def _batched(tables: Iterable[pa.Table], num_rows: int) -> Iterator[list[pa.Table]]:
    """Lists of tables with `num_rows` rows or a little more together."""
    pending, count = [], 0
    for table in tables:
        pending.append(table)
        count += table.num_rows
        if count >= num_rows:
            yield pending
            pending, count = [], 0
    if pending:
        yield pending


class _Chunk:
    """A sorted chunk read from the front, a few rows at a time."""

    def __init__(self, file: pa.NativeFile):
        self._batches = (pa.table(batch) for batch in pa.ipc.open_stream(file))
        self._next: pa.Table | None = next(self._batches, None)

    def take_before(self, cut: SortKey | None) -> Iterator[pa.Table]:
        """The rows that come before `cut` (None: all) and were not taken yet."""
        while self._next is not None:
            num_rows = self._next.num_rows
            if cut is not None and _key_at(self._next, num_rows - 1) >= cut:
                table = self._next
                end = bisect.bisect_left(range(num_rows), cut, key=lambda row: _key_at(table, row))
                self._next = table.slice(end)
                yield table.slice(0, end)
                return
            yield self._next
            self._next = next(self._batches, None)


def _key_at(table: pa.Table, row: int) -> SortKey:
    return tuple(table[name][row].as_py() for name, _ in _ORDER)


def _checked_unique(table: pa.Table) -> pa.Table:
    """`table` itself; RunError if neighbours share (pair_id, variant): rows that are equal in the order are neighbours."""
    here, after = table.slice(0, max(table.num_rows - 1, 0)), table.slice(1)
    twice = pc.and_(pc.equal(here["pair_id"], after["pair_id"]), pc.equal(here["variant"], after["variant"]))
    if (row := pc.index(twice, True).as_py()) >= 0:
        raise RunError(f"pair {here['pair_id'][row].as_py()} has two rows of one variant; the plan held it twice")
    return table
