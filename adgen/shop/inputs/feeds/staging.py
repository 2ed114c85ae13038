"""Where an import works before its tables are whole: a folder inside the one that it writes to, and DuckDB in bounds; what it may
put in place of what."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from adgen.errors import InputError
from adgen.shop.inputs.locations import local_path

DUCKDB_MEMORY = "512MB"
ROWS_PER_GROUP = 32_768
_BYTES_PER_GROUP = 2**26  # where rows are long


def local_folder(dest: str | Path) -> Path:
    """The folder to write to, made where it is not there. InputError: it is not local, or a file."""
    try:
        target = Path(local_path(str(dest))).absolute()
        target.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        raise InputError(f"{error}; an import writes a local folder, which you may copy to S3") from None
    except OSError as error:
        raise InputError(f"{dest}: cannot be made: {error.strerror}") from None
    return target


@contextmanager
def open_staged(staging: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB that spills into the folder. InputError of what stops it, such as a full disk."""
    settings = {"memory_limit": DUCKDB_MEMORY, "temp_directory": str(staging / "spill"), "threads": 2}
    try:
        with duckdb.connect(config=settings | {"preserve_insertion_order": False}) as base:
            yield base
    except duckdb.Error as error:
        raise InputError(f"{staging.parent}: rows cannot be sorted there: {error}") from None


class TableWriter:
    """A Parquet file with row groups of ROWS_PER_GROUP rows, however small the batches are."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._writer = pq.ParquetWriter(path, schema)
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        if error is None:
            self._flush()
        self._writer.close()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Some more rows."""
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if self._rows >= ROWS_PER_GROUP or sum(each.nbytes for each in self._waiting) >= _BYTES_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._waiting), row_group_size=2 * ROWS_PER_GROUP)
        self._waiting, self._rows = [], 0


def check_places(source: str | None, target: Path, names: Sequence[str]) -> None:
    """InputError where the files `names` cannot be put into `target`, or where one of them is `source`, which would be gone."""
    for name in names:
        stem = target / Path(name).stem
        if (target / name).is_dir():
            raise InputError(f"{target / name}: is a folder, and this import writes a file of this name; move it away")
        if name.endswith(".parquet") and stem.is_dir() and any(stem.rglob("*.parquet")):
            raise InputError(f"{target}: holds {stem.name}/*.parquet, and this import writes {name}; move the folder away")
    try:
        given = Path(local_path(source or "")).absolute()
    except ValueError:  # on S3 or on the web
        return
    if source and given.is_dir() and given.samefile(target):
        raise InputError(f"{given}: this import writes its tables there; name the file, or a folder that holds nothing else")
    if source and any((target / name).exists() and given.exists() and given.samefile(target / name) for name in names):
        raise InputError(f"{given}: this import writes a file of this name there; move yours to another place")


def move_into(target: Path, staging: Path, names: Sequence[str]) -> None:
    """Put whole files into the target's place, where `check_places` had nothing against it."""
    for name in names:
        os.replace(staging / name, target / name)


def quoted(path: Path) -> str:
    """In an SQL string."""
    return str(path).replace("'", "''")
