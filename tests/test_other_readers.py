"""The manifest as others read it: DuckDB, pandas, and plain readers of a folder of Parquet, as Spark and Trino are."""

from pathlib import Path

import duckdb
import pandas
import pytest
from pyarrow import dataset, parquet
from support.runs import CAMPAIGN, pair_ids, refresh

from adgen.creatives import layout, open_campaign
from adgen.creatives.pull import pull
from adgen.creatives.storage import Storage
from adgen.records import MANIFEST

OK_ONLY = [("status", "==", "ok")]


def by_duckdb(folder: Path) -> list[tuple]:
    return duckdb.sql(f"SELECT pair_id, title, sha256 FROM '{folder}/*.parquet' WHERE status = 'ok' ORDER BY pair_id").fetchall()


def by_pandas(folder: Path) -> list[tuple]:
    found = pandas.read_parquet(folder, columns=["pair_id", "title", "sha256"], filters=[("status", "==", "ok")])
    return list(found.sort_values("pair_id").itertuples(index=False, name=None))


def by_a_plain_parquet_dataset(folder: Path) -> list[tuple]:
    """As Spark and Trino do it: the folder's files, the schema that they carry, filters and columns pushed down."""
    found = dataset.dataset(folder, format="parquet").to_table(
        ["pair_id", "title", "sha256"], filter=dataset.field("status") == "ok"
    )
    return sorted(zip(*found.to_pydict().values(), strict=True))


@pytest.mark.parametrize("read", [by_duckdb, by_pandas, by_a_plain_parquet_dataset])
def test_other_readers_see_the_same_manifest(folder_store: Storage, tmp_path: Path, read):
    """Of a pulled mirror: the folder of the run's manifest files, and nothing but it."""
    refresh(folder_store, pair_ids(40), rows_per_file=10)
    pull(folder_store, CAMPAIGN, tmp_path / "pulled")
    run = open_campaign(tmp_path / "pulled", CAMPAIGN).published()
    folder = tmp_path / "pulled" / layout.run(CAMPAIGN, run.run.run_id) / "manifest"
    ours = sorted((row["pair_id"], row["title"], row["sha256"]) for row in run.rows(where=OK_ONLY))
    assert len(list(folder.iterdir())) == 4
    assert len(ours) > 20
    assert read(folder) == ours


def test_every_column_has_a_type_that_other_readers_know(folder_store: Storage):
    """DuckDB and pandas read each of them; their Parquet types are those of Spark's table of types."""
    run = refresh(folder_store, pair_ids(4))
    path = folder_store.local_path(run.document.manifest[0].key)
    assert duckdb.sql(f"SELECT * FROM '{path}'").columns == MANIFEST.names
    assert list(pandas.read_parquet(path).columns) == MANIFEST.names
    physical = {parquet.ParquetFile(path).schema.column(number).physical_type for number in range(len(MANIFEST))}
    assert physical <= {"INT32", "INT64", "BYTE_ARRAY", "BOOLEAN", "FLOAT", "DOUBLE"}
