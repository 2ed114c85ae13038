"""Import of the public PAd1M JSON (spec/PAD1M.md) into our input tables, in flat memory.

The file is read as a stream and written as staging Parquet; duplicates (one product clicked by thousands, one user in
many entries) are then removed by DuckDB, a hash bucket at a time. Pictures stay where they are.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from adgen import records
from adgen.errors import InputError
from adgen.shop.inputs.locations import local_path
from adgen.shop.inputs.pad1m_entry import BadEntry, Entry, Paths, Product, parse_entry
from adgen.shop.inputs.pad1m_file import read_entries
from adgen.shop.inputs.tables import PICTURE_ROOTS

PROBLEMS = "import_problems.parquet"
EXAMPLES_PER_REASON = 5
ROWS_PER_BATCH = 8192
RECENT_CLICKS = 200_000  # product ids remembered so that most repeated clicks are not staged again
ROWS_PER_BUCKET = 200_000  # what is deduplicated at once: a window over more could outgrow DuckDB's memory
DUCKDB_MEMORY = "1GB"

_PLACE = [pa.field("entry", pa.int64()), pa.field("position", pa.int32())]
_STAGED = {
    "products": pa.schema([records.PRODUCTS.field(name) for name in records.PRODUCTS.names[:6]] + _PLACE),
    "histories": pa.schema([("user_id", pa.string()), ("clicks", pa.list_(pa.string())), *_PLACE]),
    "references": pa.schema([*records.REFERENCES, *_PLACE]),
    "problems": pa.schema([*_PLACE, ("skipped", pa.bool_()), ("reason", pa.string()), ("detail", pa.string())]),
}


@dataclass(frozen=True)
class ImportSummary:
    """What an import read, wrote, left out and repaired; every problem is a row of `import_problems.parquet`."""

    entries: int
    users: int
    products: int
    pairs: int
    references: int
    skipped: dict[str, int]
    repaired: dict[str, int]
    examples: list[str]
    picture_roots: list[str]


def import_pad1m(file: str | Path, dest: str | Path, picture_roots: Sequence[str] = ()) -> ImportSummary:
    """Write products, histories, pairs and references of the PAd1M `file` into the local folder `dest`.

    Rows name pictures relative to `dest` where they lie in it, else by absolute path. `picture_roots.json` then lets
    refresh read them: it names the file's folder, `picture_roots`, and, when the file uses absolute paths elsewhere,
    the folder that holds them all, unless that is the disk's root or a folder in it.
    InputError names the file and position of broken JSON, and says why when no entry can be used.
    """
    try:
        source, target = Path(local_path(str(file))).absolute(), Path(local_path(str(dest))).absolute()
    except ValueError as error:
        raise InputError(f"{error}; PAd1M is imported from a local file into a local folder") from None
    target.mkdir(parents=True, exist_ok=True)
    paths = Paths(os.path.normpath(source.parent), os.path.normpath(target))
    with tempfile.TemporaryDirectory(prefix=".import-", dir=target) as staging:
        stage = _Stage(Path(staging))
        entries = stage.take_all(source, paths)
        if not stage.used:
            found = ", ".join(f"{reason} {count}" for reason, count in stage.skipped.items()) or "the file is empty"
            raise InputError(f"{source}: none of its {entries} entries can be used: {found}")
        counts, duplicates = _deduplicate(Path(staging))
        roots = _roots(paths, picture_roots)
        (Path(staging) / PICTURE_ROOTS).write_text(json.dumps(roots))
        for name in [*(f"{table}.parquet" for table in records.INPUT_TABLES), PICTURE_ROOTS, PROBLEMS]:
            shutil.move(Path(staging) / name, target / name)
    repaired = dict(sorted((stage.repaired + Counter(duplicates)).items()))
    return ImportSummary(
        entries, **counts, skipped=dict(stage.skipped), repaired=repaired, examples=stage.examples, picture_roots=roots
    )


class _Stage:
    """Entries as staged Parquet rows, with the counts and the examples of what was wrong with them."""

    def __init__(self, folder: Path):
        self.skipped: Counter = Counter()
        self.repaired: Counter = Counter()
        self.examples: list[str] = []
        self.used = 0
        self._folder = folder
        self._rows: dict[str, list[dict]] = {name: [] for name in _STAGED}
        self._recent: set[str] = set()
        self._last_history: tuple | None = None

    def take_all(self, source: Path, paths: Paths) -> int:
        """Stage every entry of `source`; how many there were."""
        number = 0
        self._writers = {name: pq.ParquetWriter(self._folder / _file(name), _STAGED[name]) for name in _STAGED}
        try:
            for number, value in enumerate(read_entries(source), start=1):
                try:
                    entry = parse_entry(value, paths, lambda *what, at=number: self._problem(at, False, *what))
                except BadEntry as error:
                    self._problem(number, True, error.reason, str(error))
                else:
                    self._take(number, entry)
            for name in _STAGED:
                self._flush(name)
        finally:
            for writer in self._writers.values():
                writer.close()
        return number

    def _take(self, number: int, entry: Entry) -> None:
        self.used += 1
        self._add_product(entry.target, number, -1)
        clicks = [click.product_id for click in entry.clicks]
        if (entry.user_id, clicks) != self._last_history:  # a user's entries usually stand together
            self._last_history = (entry.user_id, clicks)
            self._add("histories", user_id=entry.user_id, clicks=clicks, entry=number, position=0)
            for position, click in enumerate(entry.clicks):
                if click.product_id not in self._recent:
                    self._recent.add(click.product_id)
                    self._add_product(click, number, position)
        if len(self._recent) > RECENT_CLICKS:
            self._recent.clear()
        self._add(
            "references",
            user_id=entry.user_id,
            product_id=entry.target.product_id,
            image=entry.target.image,
            titles=entry.titles,
            entry=number,
            position=0,
        )

    def _add_product(self, product: Product, number: int, position: int) -> None:
        self._add("products", **asdict(product), entry=number, position=position)

    def _problem(self, number: int, skipped: bool, reason: str, detail: str) -> None:
        counter = self.skipped if skipped else self.repaired
        counter[reason] += 1
        if counter[reason] <= EXAMPLES_PER_REASON:
            self.examples.append(f"entry {number}: {reason}: {detail}")
        self._add("problems", entry=number, position=0, skipped=skipped, reason=reason, detail=detail)

    def _add(self, name: str, **row: Any) -> None:
        self._rows[name].append(row)
        if len(self._rows[name]) >= ROWS_PER_BATCH:
            self._flush(name)

    def _flush(self, name: str) -> None:
        self._writers[name].write_batch(pa.RecordBatch.from_pylist(self._rows[name], _STAGED[name]))
        self._rows[name].clear()


def _file(staged: str) -> str:
    return PROBLEMS if staged == "problems" else f"staged_{staged}.parquet"


def _deduplicate(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Write the final tables into `folder`. (rows of each, what was merged): the first wins, targets before clicks."""
    config = {"memory_limit": DUCKDB_MEMORY, "temp_directory": str(folder / "spill"), "threads": 2}
    with duckdb.connect(config=config) as base:
        for name in ("products", "histories", "references"):
            base.execute(f"CREATE VIEW staged_{name} AS FROM read_parquet('{_quoted(folder / _file(name))}')")
        counts = {
            "users": _write_first(base, folder, "histories", "user_id", "len(clicks) DESC, entry"),
            "products": _write_first(base, folder, "products", "product_id", "position >= 0, entry, position"),
            # product ids are hexadecimal, so the last '/' parts the two unambiguously
            "references": _write_first(base, folder, "references", "concat_ws('/', user_id, product_id)", "entry"),
        }
        counts["pairs"] = _write_pairs(folder)
        pairs = base.execute("SELECT count(*) FROM staged_references").fetchone()[0]
        row = "hash(title, selling_points, cutout, scale)"
        described = f"(SELECT product_id, {row} AS v FROM staged_products WHERE position < 0)"
        clicked = "(SELECT user_id, hash(clicks) AS v FROM staged_histories)"
        merged = {
            "duplicate_pair": pairs - counts["pairs"],
            "product_described_twice": _count_conflicts(base, described, "product_id"),
            "user_with_several_histories": _count_conflicts(base, clicked, "user_id"),
        }
    return counts, {reason: count for reason, count in merged.items() if count}


def _count_conflicts(base: duckdb.DuckDBPyConnection, source: str, key: str) -> int:
    query = f"SELECT count(*) FROM (SELECT 1 FROM {source} GROUP BY {key} HAVING min(v) <> max(v))"
    return base.execute(query).fetchone()[0]


def _write_first(base: duckdb.DuckDBPyConnection, folder: Path, table: str, key: str, order: str) -> int:
    """Write the first staged row, in `order`, of each `key`; how many rows that are."""
    buckets = 1 + pq.read_metadata(folder / _file(table)).num_rows // ROWS_PER_BUCKET
    schema, rows = records.INPUT_TABLES[table], 0
    with pq.ParquetWriter(folder / f"{table}.parquet", schema) as writer:
        for bucket in range(buckets):
            query = (
                f"SELECT * FROM staged_{table} WHERE md5_number_lower({key}) % {buckets} = {bucket} "
                f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {order}) = 1 ORDER BY entry, position"
            )
            for batch in base.sql(query).to_arrow_reader(ROWS_PER_BATCH):
                writer.write_batch(_shaped(batch, schema))
                rows += batch.num_rows
    return rows


def _write_pairs(folder: Path) -> int:
    references = pq.ParquetFile(folder / "references.parquet")
    with pq.ParquetWriter(folder / "pairs.parquet", records.PAIRS) as writer:
        for batch in references.iter_batches(ROWS_PER_BATCH, columns=["user_id", "product_id"]):
            writer.write_batch(_shaped(batch, records.PAIRS))
    return references.metadata.num_rows


def _shaped(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for field in schema:
        if field.name not in batch.schema.names:
            columns.append(pa.nulls(batch.num_rows, field.type))
        elif field.name == "clicks":
            columns.append(_with_times(batch.column("clicks")))
        else:
            columns.append(batch.column(field.name).cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _with_times(ids: pa.ListArray) -> pa.ListArray:
    """Lists of product ids as lists of clicks whose time is not known."""
    flat = ids.flatten().cast(pa.string())
    clicks = pa.StructArray.from_arrays([flat, pa.nulls(len(flat), records.CLICK[1].type)], fields=list(records.CLICK))
    lengths = pa.compute.list_value_length(ids).to_numpy(zero_copy_only=False)
    offsets = pa.array([0, *lengths.cumsum()], pa.int32())
    return pa.ListArray.from_arrays(offsets, clicks)


def _roots(paths: Paths, given: Sequence[str]) -> list[str]:
    roots = [paths.folder, *(os.path.abspath(root) for root in given)]
    if paths.outside and len(Path(paths.outside).parts) > 2:  # "/" or "/home" would open the whole disk
        roots.append(paths.outside)
    return list(dict.fromkeys(roots))


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
