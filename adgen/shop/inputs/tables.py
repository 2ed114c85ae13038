"""The input tables of docs/design.md 2, as Parquet at any URI: checked before any work, then read as streams.

A table is one file `products.parquet` or a folder of Parquet files, `products/` or `products.parquet/`, in partitions or not.
Whichever it is, a row's relative picture URI means a file in the inputs folder itself, so that splitting a table does not move
its pictures. Nulls in rows are let through: one null is that row's trouble, not the run's.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from dataclasses import field as dataclass_field

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pyarrow.types as kinds

from adgen import records
from adgen.errors import InputError, PairError
from adgen.shop.inputs.locations import SCHEMES, filesystem, is_s3, local_path, read_bytes, resolve_uri, stat
from adgen.shop.inputs.text import with_sound_text

__all__ = ["InputFile", "InputTable", "Inputs", "open_inputs", "read_bytes", "resolve_uri", "stat"]

REFRESH_TABLES = ("products", "histories", "pairs")
PICTURE_ROOTS = "picture_roots.json"
_ENDING = ".parquet"
OPTIONAL = frozenset({"cutout", "category", "brand", "locale", "channel"})  # docs/design.md 2: "null"


@dataclass(frozen=True)
class InputFile:
    """One Parquet file of a table; `stamp` is its ETag, or size and modification time."""

    uri: str
    stamp: str
    num_rows: int


@dataclass(frozen=True)
class InputTable:
    """A checked table. Pickles, so that a remote task can read its share of `files`."""

    name: str
    schema: pa.Schema
    files: tuple[InputFile, ...]
    _left_out: dict[str, tuple[int, Counter[str]]] = dataclass_field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_rows(self) -> int:
        """Of the files, with what is left out."""
        return sum(file.num_rows for file in self.files)

    @property
    def left_out(self) -> dict[str, int]:
        """Rows that this process read and left out, because the bytes of an id are no UTF-8, as {"pairs.user_id": 2}."""
        return dict(sum((counts for _, counts in self._left_out.values()), Counter()))

    def batches(
        self, columns: Sequence[str] | None = None, batch_rows: int = 65_536, files: Sequence[InputFile] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Record batches of `columns` (default all) in `schema`'s types, file by file; absent columns are nulls."""
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        for file in self.files if files is None else files:
            left_out: Counter[str] = Counter()
            yield from (with_sound_text(batch, self.name, left_out) for batch in _read_file(file.uri, schema, batch_rows))
            read = len(schema), left_out  # a file is read more than once: what saw most of its columns counts
            self._left_out[file.uri] = max(read, self._left_out.get(file.uri, read), key=lambda each: each[0])

    def reader(self, columns: Sequence[str] | None = None, failed: list[InputError] | None = None) -> pa.RecordBatchReader:
        """The same stream as one Arrow reader, as DuckDB takes it. What goes wrong is appended to `failed`: the reader's own reader
        makes an error of its own of it."""

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                yield from self.batches(columns)
            except InputError as error:
                if failed is not None:
                    failed.append(error)
                raise

        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        return pa.RecordBatchReader.from_batches(schema, batches())


@dataclass(frozen=True)
class Inputs:
    """An inputs folder whose tables have been checked, and the places its rows may name."""

    uri: str
    tables: dict[str, InputTable]
    allowed_roots: tuple[str, ...]
    allowed_schemes: tuple[str, ...]

    def __getitem__(self, table: str) -> InputTable:
        return self.tables[table]

    @property
    def left_out(self) -> dict[str, int]:
        """`InputTable.left_out` of all tables."""
        return {name: count for table in self.tables.values() for name, count in sorted(table.left_out.items())}

    @property
    def stamps(self) -> dict[str, str]:
        """File URI -> stamp for every input file: the resume key's view of the inputs."""
        return {file.uri: file.stamp for name in sorted(self.tables) for file in self.tables[name].files}

    def resolve(self, uri: str) -> str:
        """`resolve_uri` in this folder, with this folder's roots and schemes."""
        return resolve_uri(uri, self.uri, self.allowed_roots, self.allowed_schemes)


def open_inputs(
    uri: str,
    tables: Sequence[str] = REFRESH_TABLES,
    allowed_roots: Sequence[str] = (),
    allowed_schemes: Sequence[str] = SCHEMES,
    optional: Sequence[str] = (),
) -> Inputs:
    """Check the schemas and footers of `tables` in the folder `uri` (a path, file:// or s3://); reads no rows.

    Those of `optional` tables that are not there, or empty, are not in the result.

    Pictures may lie under `uri`, under `allowed_roots`, and under the folders that an import wrote into
    `picture_roots.json`. InputError names the table, and the column, that is missing, wrong or empty.
    """
    uri = str(uri)
    try:
        folder = uri.rstrip("/") if is_s3(uri) else local_path(uri)
        files, path = filesystem(folder)
    except ValueError as error:
        raise InputError(f"inputs: {error}; give a folder, file:// or s3://bucket/prefix") from None
    except OSError as error:
        raise InputError(f"inputs {uri}: {error}") from None
    folder = f"s3://{path}" if is_s3(uri) else path
    opened = {name: _open_table(name, folder, files, path) for name in tables}
    for name in optional:
        parts = _table_parts(name, folder, files, path)  # none where a folder of this name holds pictures only
        if parts and (table := _checked_table(name, folder, parts)).num_rows:
            opened[name] = table
    roots = (*allowed_roots, *_picture_roots(folder, files, path))
    return Inputs(folder, opened, roots, tuple(allowed_schemes))


def _open_table(name: str, folder: str, files: pafs.FileSystem, path: str) -> InputTable:
    parts = _table_parts(name, folder, files, path)
    if not parts:
        raise InputError(f"{folder}: table '{name}' is missing; expected {name}.parquet or {name}/*.parquet")
    table = _checked_table(name, folder, parts)
    if not table.num_rows:
        raise InputError(f"{folder}: table '{name}' has no rows (no {table.schema.names[0]}); nothing could be done")
    return table


def _checked_table(name: str, folder: str, parts: Sequence[str]) -> InputTable:
    expected = records.INPUT_TABLES[name]
    uris = [f"{folder}/{part}" for part in parts]
    with ThreadPoolExecutor(16) as pool:  # a table may have thousands of files, each a few round trips
        found = tuple(pool.map(lambda uri: _open_file(name, uri, expected), uris))
    return InputTable(name, pa.schema([field.with_nullable(True) for field in expected]), found)


def _table_parts(name: str, folder: str, files: pafs.FileSystem, path: str) -> list[str]:
    """The table's files, relative to `folder`: products.parquet, or the parts in a folder products or products.parquet."""
    try:
        found: dict[str, list[str]] = {}
        for place in _places(name, files, path):  # beside a table's file, a folder of its name may hold a million pictures
            if parts := _parts_at(place, files, path, recursive=not found):
                found[place] = parts
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{folder}: cannot look for table '{name}': {error}") from None
    if len(found) > 1:
        raise InputError(f"{folder}: table '{name}' is there twice, as {' and as '.join(found)}; remove one")
    parts = next(iter(found.values()), [])
    for part in parts:
        _check_folders(name, folder, part)
    return parts


def _places(name: str, files: pafs.FileSystem, path: str) -> list[str]:
    """Where the table may be. A local folder is asked for its names, as some file systems take upper for lower case."""
    places = [f"{name}.parquet", f"{name}.PARQUET", f"{name}.Parquet", name]
    if isinstance(files, pafs.LocalFileSystem) and os.path.isdir(path):
        return [place for place in places if place in set(os.listdir(path))]
    return places


def _parts_at(place: str, files: pafs.FileSystem, path: str, recursive: bool) -> list[str]:
    """The Parquet files at a place or below it; names that begin with _ or . are their writers' own."""
    kind = files.get_file_info(f"{path}/{place}").type
    if kind == pafs.FileType.File:
        return [place] if place.lower().endswith(_ENDING) else []
    if kind != pafs.FileType.Directory:
        return []
    inside = files.get_file_info(pafs.FileSelector(f"{path}/{place}", recursive=recursive))
    names = (item.path[len(path) + 1 :] for item in inside if item.type == pafs.FileType.File)
    return sorted(n for n in names if n.lower().endswith(_ENDING) and not any(part[0] in "._" for part in n.split("/")))


def _check_folders(name: str, folder: str, part: str) -> None:
    """InputError for a part in a sub-folder that is no partition of rows, or that says a column which its file then lacks."""
    for each in part.split("/")[1:-1]:
        column, is_partition, _ = each.partition("=")
        if not is_partition:
            raise InputError(f"{folder}: table '{name}': {part} is in a sub-folder that is no partition; move it up, or away")
        if column in records.INPUT_TABLES[name].names:
            raise InputError(
                f"{folder}: table '{name}': {part} is partitioned by its column '{column}', which the file itself lacks; "
                "write the table without partitions, or by a column of another name"
            )


def _open_file(name: str, uri: str, expected: pa.Schema) -> InputFile:
    try:
        files, path = filesystem(uri)
        with files.open_input_file(path) as source:
            footer = pq.ParquetFile(source)
            schema, num_rows = footer.schema_arrow, footer.metadata.num_rows
        stamp = stat(uri)
    except (OSError, pa.ArrowException, PairError) as error:
        raise InputError(f"table '{name}': {uri} cannot be read as Parquet: {error}") from None
    for field in expected:
        found = schema.get_all_field_indices(field.name)
        if len(found) > 1:
            raise InputError(f"table '{name}': column '{field.name}' is there {len(found)} times in {uri}")
        if not found and field.name not in OPTIONAL:
            raise InputError(f"table '{name}': column '{field.name}' ({field.type}) is missing in {uri}")
        if found and not _fits(schema.field(found[0]).type, field.type):
            raise InputError(
                f"table '{name}': column '{field.name}': expected {field.type}, found {schema.field(found[0]).type} in {uri}"
            )
    return InputFile(uri, stamp, num_rows)


def _fits(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a column of type `found` can be cast to `expected` without changing what it says."""
    if kinds.is_dictionary(found):
        return _fits(found.value_type, expected)
    if kinds.is_null(found):
        return True
    if kinds.is_string(expected):
        return kinds.is_string(found) or kinds.is_large_string(found) or kinds.is_string_view(found)
    if kinds.is_list(expected):
        lists = kinds.is_list(found) or kinds.is_large_list(found) or kinds.is_fixed_size_list(found)
        return lists and _fits(found.value_type, expected.value_type)
    if kinds.is_struct(expected):  # CLICK: product_id is what it is for, clicked_at may be absent
        if not kinds.is_struct(found) or found.get_field_index("product_id") < 0:
            return False
        names = [field.name for field in expected if found.get_field_index(field.name) >= 0]
        return all(_fits(found.field(name).type, expected.field(name).type) for name in names)
    if kinds.is_floating(expected):
        return kinds.is_floating(found)
    return kinds.is_timestamp(expected) and kinds.is_timestamp(found)  # without a time zone it is taken as UTC


def _read_file(uri: str, schema: pa.Schema, batch_rows: int) -> Iterator[pa.RecordBatch]:
    try:
        files, path = filesystem(uri)
        with files.open_input_file(path) as source:
            parquet = pq.ParquetFile(source, pre_buffer=is_s3(uri))
            present, read, whole = _present(parquet, schema), 0, parquet.metadata.num_rows
            for batch in parquet.iter_batches(batch_rows, columns=present):
                read += batch.num_rows
                yield _conform(batch, schema)
            if present and read != whole:  # Arrow reads a column of no rows as the file's end
                raise InputError(f"{uri}: cannot be read to its end: {read:,} of its {whole:,} rows are there; write it again")
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{uri}: cannot be read to its end: {error}") from None


def _present(file: pq.ParquetFile, schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name in file.schema_arrow.names]


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for field in schema:
        if field.name in batch.schema.names:
            columns.append(batch.column(field.name).cast(field.type, safe=False))  # ns -> us, double -> float
        else:
            columns.append(pa.nulls(batch.num_rows, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _picture_roots(folder: str, files: pafs.FileSystem, path: str) -> list[str]:
    """The folders of `picture_roots.json`. It lies with the tables and is the operator's, as they are."""
    try:
        with files.open_input_file(f"{path}/{PICTURE_ROOTS}") as source:
            roots = json.loads(source.read())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder}/{PICTURE_ROOTS}: not a JSON list of folders: {error}") from None
    if not isinstance(roots, list) or not all(isinstance(root, str) and root for root in roots):
        raise InputError(f"{folder}/{PICTURE_ROOTS}: expected a JSON list of folders, found {roots!r}")
    return roots
