"""The rows of an evaluation as they lie in its folder: Parquet parts, read as a stream or joined and sorted out of memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adgen.errors import SettingsError
from adgen.evaluation.scores import old_names
from adgen.local_cache import user_cache

ROWS = "rows"  # the folder of the parts within an evaluation
_BATCH = 4096
_SETTINGS = {"memory_limit": "2GB"}


def check_rows(folder: Path, parts: str = ROWS) -> None:
    """SettingsError where no evaluation lies in the folder."""
    if not any((folder / parts).glob("*.parquet")):
        raise SettingsError(f"{folder}: no evaluation lies there ({parts}/*.parquet is missing)")


def read_rows(folder: Path, columns: Sequence[str], parts: str = ROWS) -> Iterator[pa.RecordBatch]:
    """Batches of the rows, part by part. SettingsError: there are none, or another version wrote them."""
    check_rows(folder, parts)
    for part in sorted((folder / parts).glob("*.parquet")):
        with pq.ParquetFile(part) as file:
            named = _names_there(columns, file.schema_arrow.names)
            if missing := set(named) - set(file.schema_arrow.names):
                raise SettingsError(f"{part}: column {min(missing)} is missing; another version of adgen wrote it")
            for batch in file.iter_batches(batch_size=_BATCH, columns=list(named)):
                yield batch.rename_columns([named[name] for name in batch.schema.names])


def _names_there(columns: Sequence[str], there: Sequence[str]) -> dict[str, str]:
    """Name in a file -> column: files that were written before 0.2.0 have old names alone."""
    renamed = {new: old for new, old in old_names().items() if new not in there and old in there}
    return {renamed.get(name, name): name for name in columns}


def with_old_columns(rows: pa.Table) -> pa.Table:
    """The rows, and after their columns those of renamed scores under their old names, until 0.3.0."""
    for new, old in old_names().items():
        rows = rows.append_column(old, rows[new])
    return rows


def rows_by_user(folder: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The same in the order of user_key."""
    with opened(here=folder) as base:
        yield from base.sql(f"SELECT {', '.join(columns)} FROM here ORDER BY user_key, pair_id, variant").to_arrow_reader(_BATCH)


def joined_by_user(here: Path, there: Path, columns: str) -> Iterator[pa.RecordBatch]:
    """`columns` (SQL, of `here` and `there`) of the rows that both have, in the order of here.user_key. SettingsError: another
    version wrote one of them."""
    query = f"SELECT here.user_key, {columns} FROM here JOIN there USING (pair_id, variant) ORDER BY here.user_key"
    with opened(here=here, there=there) as base:
        try:
            yield from base.sql(query).to_arrow_reader(_BATCH)
        except duckdb.BinderException as error:
            raise SettingsError(f"{there}: another version of adgen wrote it: {error}") from None


def values_of(batch: pa.RecordBatch, columns: Sequence[str]) -> np.ndarray:
    """Numbers of the columns: (num_rows, len(columns)), NaN for null."""
    return np.stack([batch[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in columns], axis=1)


def count_rows(folder: Path) -> int:
    """From the parts' footers."""
    return sum(pq.ParquetFile(part).metadata.num_rows for part in (folder / ROWS).glob("*.parquet"))


@contextmanager
def opened(parts: str = ROWS, /, **folders: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A view of each folder's rows; what does not fit into memory goes to disk."""
    with duckdb.connect(config=_SETTINGS | {"temp_directory": str(user_cache("duckdb"))}) as base:
        for name, folder in folders.items():
            check_rows(folder, parts)
            files = str(folder / parts / "*.parquet").replace("'", "''")  # a quote in a folder's name ends no string
            there = base.sql(f"SELECT * FROM read_parquet('{files}')").columns
            renamed = {old: new for old, new in _names_there(list(old_names()), there).items() if old in there and old != new}
            columns = ", ".join(["*", *(f"{old} AS {new}" for old, new in renamed.items())])
            base.execute(f"CREATE VIEW {name} AS SELECT {columns} FROM read_parquet('{files}')")
        yield base
