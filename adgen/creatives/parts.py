"""Rows of manifest files, fetched sparingly. Left out are: files whose key range in run.json holds no wanted row; row groups whose
statistics in Parquet's footer exclude the filter; columns that nobody asked for; and, of a row group where no row matches, all
columns but those that the filter compares.
"""

import hashlib
import mmap
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from adgen.creatives.documents import ManifestFile
from adgen.creatives.ranges import RangedFile, checked_piece, differs
from adgen.creatives.storage import Storage
from adgen.errors import AdgenError, ConsumerError
from adgen.records import MANIFEST, MANIFEST_SCHEMA_VERSION, with_later_columns

Row = dict[str, Any]
"""A creative by the manifest's columns; docs/outputs.md says what each means."""
Filter = tuple[str, str, Any]
"""(column, operator, value) as pyarrow, pandas and dask write it: == != < <= > >= in, not in."""
Where = Sequence[Filter] | Sequence[Sequence[Filter]]
"""Filters that must all hold, or lists of such of which one must."""

_ROWS_AT_ONCE = 8192
_BYTES_AT_ONCE = 2**24
_MOST_ENDS = 64
_FORMAT = ds.ParquetFileFormat()


@dataclass(frozen=True)
class Selection:
    """Which rows and which columns of them."""

    columns: tuple[str, ...]
    filters: tuple[tuple[Filter, ...], ...] = ()
    with_neighbours: bool = False
    """All rows of the row groups that may hold what the filters keep: a reader that comes again finds more in them."""

    @classmethod
    def of(cls, columns: Collection[str] | None, where: Where | None) -> "Selection":
        """What was asked for; None: all. ConsumerError names a column that there is not, or a filter that is none."""
        try:
            groups = [where] if where and isinstance(where[0][0], str) else where or ()
            filters = tuple(tuple((name, operator, value) for name, operator, value in group) for group in groups)
        except (IndexError, TypeError, ValueError):
            raise ConsumerError(f"where: {where!r} is no list of (column, operator, value)") from None
        found = cls(tuple(MANIFEST.names if columns is None else columns), filters)
        if unknown := [name for name in (*found.columns, *found.compared) if name not in MANIFEST.names]:
            raise ConsumerError(f"{unknown[0]!r} is no column of a manifest; it has {', '.join(MANIFEST.names)}")
        if found.filters:
            try:
                found.places(MANIFEST.empty_table())
            except (pa.ArrowException, ValueError, TypeError) as error:
                raise ConsumerError(f"where: {' '.join(str(error).split())}") from None
        return found

    @cached_property
    def compared(self) -> tuple[str, ...]:
        """The columns that the filters look at."""
        return tuple(dict.fromkeys(str(each[0]) for group in self.filters for each in group))

    @property
    def is_everything(self) -> bool:
        """Whether each byte of each file is wanted."""
        return not self.filters and set(self.columns) == set(MANIFEST.names)

    @cached_property
    def expression(self) -> pc.Expression:
        """The filters for Arrow. ValueError: an operator that is none, or a filter of another form."""
        return pq.filters_to_expression([list(group) for group in self.filters])

    def places(self, table: pa.Table) -> pa.Array:
        """Which rows of a table with the columns `compared` are wanted."""
        numbered = table.append_column("", pa.array(range(table.num_rows), pa.int64()))
        return ds.dataset(numbered).to_table(columns=[""], filter=self.expression, use_threads=False)[""].combine_chunks()

    def files(self, files: Sequence[ManifestFile]) -> list[ManifestFile]:
        """Those whose key range may hold such rows."""
        if not self.filters or not files:
            return list(files)
        user = pc.field("user_key")
        ranges = [(user >= file.first_user_key) & (user <= file.last_user_key) for file in files]
        numbers = [str(number) for number in range(len(files))]
        known = ds.FileSystemDataset.from_paths(
            numbers, schema=MANIFEST, format=_FORMAT, filesystem=pafs.LocalFileSystem(), partitions=ranges
        )
        return [files[int(fragment.path)] for fragment in known.get_fragments(filter=self.expression)]


class ManifestParts:
    """The manifest files of a run. Threads may share it."""

    def __init__(self, storage: Storage, files: Sequence[ManifestFile]):
        self.storage, self.files = storage, files
        # Who looks up many creatives reads and understands each footer once.
        self._ends: dict[str, bytes] = {}
        self._footers: dict[str, ds.ParquetFileFragment] = {}

    def tables(self, selection: Selection) -> Iterator[pa.Table]:
        """The rows in the manifest's order, some thousand at once.

        A file that is wanted whole is compared with its sha256 before its first row; of one that is read in pieces Parquet's page
        checksums are, which files of before 0.2.0 have not. ConsumerError names a file that is gone, damaged or of a newer schema.
        """
        for file in selection.files(self.files):
            yield from self.of_file(file, selection)

    def of_file(self, file: ManifestFile, selection: Selection) -> Iterator[pa.Table]:
        """The same of one file."""
        address = self.storage.address(file.key)
        with _as_consumer_error(address), self._opened(file, selection) as source:
            part = _Part(source, address, self._footers.get(file.key))
            _remember(self._footers, file.key, part.footer)
            yield from part.tables(selection)

    @contextmanager
    def _opened(self, file: ManifestFile, selection: Selection) -> Iterator[BinaryIO | RangedFile]:
        path = self.storage.local_path(file.key)
        if selection.is_everything:
            with tempfile.TemporaryFile(prefix="adgen-manifest-") if path is None else _open_local(self.storage, file) as whole:
                _check_whole(self.storage, file, None if path else whole)
                yield whole
        elif path is not None:
            with _open_local(self.storage, file) as local:
                yield local
        else:
            ranged = RangedFile(self.storage, file, self._ends.get(file.key, b""))
            yield ranged
            _remember(self._ends, file.key, ranged.end)

    def mirror(self, file: ManifestFile, folder: Storage) -> None:
        """Put a file into another store. ConsumerError, and nothing is put: it is gone or another than run.json says."""
        with tempfile.TemporaryFile(prefix="adgen-manifest-") as copy:
            _check_whole(self.storage, file, copy)
            copy.flush()
            with mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ) as data:
                folder.put(file.key, data)

    def has(self, file: ManifestFile) -> bool:
        """Whether a file is there and right."""
        try:
            _check_whole(self.storage, file, None)
            return True
        except ConsumerError:
            return False


class _Part:
    """A manifest file that was opened."""

    def __init__(self, source: BinaryIO | RangedFile, address: str, footer: ds.ParquetFileFragment | None):
        """footer: of an earlier time, whose schema is known to be right."""
        self.source, self.address = source, address
        known = footer and footer.metadata
        self.parquet = pq.ParquetFile(source, metadata=known, page_checksum_verification=True)
        self.names = self.parquet.schema_arrow.names
        if footer is None:
            self._check_schema()
        self.footer = footer or self._read_footer()

    def _read_footer(self) -> ds.ParquetFileFragment:
        self.source.seek(0)
        fragment = _FORMAT.make_fragment(pa.PythonFile(self.source, mode="r"))
        fragment.ensure_complete_metadata()
        return fragment

    def tables(self, selection: Selection) -> Iterator[pa.Table]:
        for group in self._groups(selection):
            if selection.with_neighbours:
                yield self._read(group, selection.columns)
            elif selection.filters:
                yield from self._found(group, selection)
            else:
                self._load(group, selection.columns)
                columns = [name for name in selection.columns if name in self.names]
                for batch in self.parquet.iter_batches(_ROWS_AT_ONCE, [group], columns, use_threads=False):
                    yield self._with_columns(pa.Table.from_batches([batch]), selection.columns)

    def _found(self, group: int, selection: Selection) -> Iterator[pa.Table]:
        places = selection.places(self._read(group, selection.compared))
        if len(places):
            found = self._read(group, selection.columns).take(places)
            for start in range(0, found.num_rows, _ROWS_AT_ONCE):
                yield found.slice(start, _ROWS_AT_ONCE)

    def _groups(self, selection: Selection) -> list[int]:
        if not selection.filters or not set(selection.compared) <= set(self.names):
            return list(range(self.parquet.num_row_groups))
        return [group.id for some in self.footer.split_by_row_group(selection.expression) for group in some.row_groups]

    def _read(self, group: int, columns: Sequence[str]) -> pa.Table:
        self._load(group, columns)
        found = self.parquet.read_row_group(group, [name for name in columns if name in self.names], use_threads=False)
        return self._with_columns(found, columns)

    def _load(self, group: int, columns: Collection[str]) -> None:
        if isinstance(self.source, RangedFile):
            chunks = self._chunks(group, columns)
            starts = [(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.total_compressed_size) for chunk in chunks]
            self.source.load((start, start + size) for start, size in starts)

    def _chunks(self, group: int, columns: Collection[str]) -> list[pq.ColumnChunkMetaData]:
        about = self.parquet.metadata.row_group(group)
        chunks = (about.column(number) for number in range(about.num_columns))
        return [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in columns]

    def _with_columns(self, table: pa.Table, columns: Sequence[str]) -> pa.Table:
        schema = pa.schema([MANIFEST.field(name) for name in columns])
        return with_later_columns(table, schema).select(schema.names)

    def _check_schema(self) -> None:
        try:
            with_later_columns(self.parquet.schema_arrow.empty_table(), MANIFEST)
        except ValueError as error:
            raise ConsumerError(f"{self.address}: not a manifest: {error}") from None
        version = max((self._version(group) for group in range(self.parquet.num_row_groups)), default=0)
        if version > MANIFEST_SCHEMA_VERSION:
            raise ConsumerError(newer_schema(self.address, version))

    def _version(self, group: int) -> int:
        about = self._chunks(group, ["schema_version"])[0].statistics
        if about is not None and about.has_min_max:
            return about.max
        return pc.max(self._read(group, ["schema_version"])["schema_version"]).as_py() or 0


def _remember(known: dict[str, Any], key: str, value: Any) -> None:
    if key not in known and len(known) >= _MOST_ENDS:
        known.clear()
    known[key] = value


def newer_schema(address: str, version: int) -> str:
    """What is said of a store that a later adgen wrote."""
    return f"{address}: has manifest schema {version}, this adgen reads {MANIFEST_SCHEMA_VERSION}; update adgen to read it"


def _open_local(storage: Storage, file: ManifestFile) -> BinaryIO:
    checked_piece(storage, file, storage.get_range(file.key, 0, 0), 0)
    return open(storage.local_path(file.key), "rb")


def _check_whole(storage: Storage, file: ManifestFile, copy: BinaryIO | None) -> None:
    """Compare a file with its sha256, written to `copy` on the way. ConsumerError: it is another."""
    found = hashlib.sha256()
    for start in range(0, file.bytes, _BYTES_AT_ONCE):
        stop = min(start + _BYTES_AT_ONCE, file.bytes)
        data = checked_piece(storage, file, storage.get_range(file.key, start, stop), stop - start)
        found.update(data)
        if copy is not None:
            copy.write(data)
    if found.hexdigest() != file.sha256:
        raise ConsumerError(differs(storage.address(file.key)))


@contextmanager
def _as_consumer_error(address: str) -> Iterator[None]:
    """What Arrow says of a file that is no Parquet, or damaged."""
    try:
        yield
    except AdgenError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConsumerError(f"{differs(address)} ({' '.join(str(error).split())})") from None
