"""Which products a refresh needs, in buckets: those that somebody clicked and those that somebody shall see.

The joins are DuckDB's, out of core, over the input tables as Arrow streams. A bucket is a range of the products' keys, so
that the buckets one after another are the catalog in its order.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from adgen.errors import InputError, RunError
from adgen.shop.inputs.tables import Inputs

PRODUCTS_PER_BUCKET = 65_536
_THREADS = 4  # each holds buffers of its own: a head node with a hundred cores would not fit into the memory limit
_COLUMNS = ("product_id", "title", "selling_points", "image", "cutout", "scale")


def product_key(product_id: str) -> int:
    """64 bits of the id's MD5, as DuckDB's md5_number_lower has them: what a catalog is sorted by."""
    raw = product_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.md5(raw, usedforsecurity=False).digest()[8:], "little")


def bucket_count(rows: int, rows_per_bucket: int = PRODUCTS_PER_BUCKET) -> int:
    """The power of two that leaves about `rows_per_bucket` in a bucket."""
    return 1 << max(0, (rows - 1) // rows_per_bucket).bit_length()


def split_products(inputs: Inputs, folder: str | Path, num_buckets: int, memory_limit: str = "2GB") -> list[int]:
    """Write the needed products into bucket files below `folder` (local); the numbers of the buckets that hold any.

    `num_buckets` is a power of two. Products without an id, and those that no pair and no history names, are left out.
    """
    folder = Path(folder)
    shutil.rmtree(folder / "buckets", ignore_errors=True)  # of a driver that was killed here
    folder.mkdir(parents=True, exist_ok=True)
    shift = 64 - (num_buckets.bit_length() - 1)
    bucket = f"(key >> {shift})::INTEGER" if num_buckets > 1 else "0"
    failed: list[InputError] = []
    with _connect(folder, memory_limit) as connection, _own_errors(failed, folder):
        connection.register("pairs", inputs["pairs"].reader(["product_id"], failed))
        connection.execute("CREATE TABLE targeted AS SELECT DISTINCT product_id FROM pairs")
        connection.register("histories", inputs["histories"].reader(["clicks"], failed))
        connection.execute(
            "CREATE TABLE clicked AS SELECT DISTINCT click.product_id FROM (SELECT unnest(clicks) AS click FROM histories)"
        )
        connection.register("products", inputs["products"].reader(_COLUMNS, failed))
        connection.execute(
            f"""COPY (
                SELECT *, {bucket} AS bucket FROM (
                    SELECT md5_number_lower(product_id) AS key, products.*, clicked.product_id IS NOT NULL AS clicked
                    FROM products LEFT JOIN clicked USING (product_id) LEFT JOIN targeted USING (product_id)
                    WHERE clicked.product_id IS NOT NULL OR targeted.product_id IS NOT NULL
                )) TO '{_quoted(folder)}/buckets' (FORMAT parquet, PARTITION_BY (bucket), OVERWRITE_OR_IGNORE)"""
        )
    return sorted(int(path.name.partition("=")[2]) for path in (folder / "buckets").glob("bucket=*"))


def read_products(folder: str | Path, bucket: int, memory_limit: str = "1GB") -> pa.Table:
    """One bucket's products, each id once: of rows with the same id the first in the order of their values."""
    with _connect(Path(folder), memory_limit) as connection:
        return connection.sql(
            f"""SELECT DISTINCT ON (product_id) key, {", ".join(_COLUMNS)}, clicked
                FROM read_parquet('{_quoted(Path(folder))}/buckets/bucket={int(bucket)}/*.parquet', hive_partitioning=false)
                ORDER BY product_id, title, image, cutout, scale, selling_points"""
        ).to_arrow_table()


@contextmanager
def _own_errors(failed: list[InputError], folder: Path) -> Iterator[None]:
    """What stopped a stream that DuckDB reads, or RunError of what stopped DuckDB, such as a full disk."""
    try:
        yield
    except duckdb.Error as error:
        raise failed[0] if failed else RunError(f"{folder}: products cannot be sorted there: {error}") from None


def _connect(folder: Path, memory_limit: str) -> duckdb.DuckDBPyConnection:
    settings = {"memory_limit": memory_limit, "threads": _THREADS, "preserve_insertion_order": False}
    return duckdb.connect(":memory:", config=settings | {"temp_directory": str(folder / "spill")})


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
