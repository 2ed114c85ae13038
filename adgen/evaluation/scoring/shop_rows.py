"""What the input tables say of some products and pairs, asked for batch by batch.

Both tables are read once into DuckDB, which keeps what does not fit into memory on disk: a worker's memory does not grow with
the shop.
"""

from collections.abc import Iterable
from typing import Any

import duckdb
import pyarrow as pa

from adgen.local_cache import user_cache
from adgen.shop.inputs.tables import Inputs

_COLUMNS = {
    "products": ("product_id", "title", "selling_points", "image", "cutout", "scale", "category", "brand", "locale"),
    "references": ("user_id", "product_id", "image", "titles"),
}
_SETTINGS = {"memory_limit": "2GB", "threads": 1}


class ShopRows:
    """Products and references by their ids. Of a product or pair that is there twice the first row is taken, and `listed` says how
    often it is there."""

    def __init__(self, inputs: Inputs):
        self._base = duckdb.connect(":memory:", config=_SETTINGS | {"temp_directory": str(user_cache("duckdb"))})
        self.has_references = "references" in inputs.tables
        for table, columns in _COLUMNS.items():
            if table in inputs.tables:
                self._base.register("stream", inputs[table].reader(columns))
                self._base.execute(f'CREATE TABLE "{table}" AS SELECT * FROM stream')
                self._base.unregister("stream")

    def products(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Rows by product_id; those that the table does not have are not in it."""
        wanted = pa.table({"product_id": pa.array(sorted(set(ids)), pa.string())})
        return {row["product_id"]: row for row in self._rows("products", wanted)}

    def references(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
        """Rows by (user_id, product_id); none where there is no table."""
        if not self.has_references:
            return {}
        users, products = zip(*sorted(set(pairs)), strict=True) if pairs else ((), ())
        wanted = pa.table({"user_id": pa.array(users, pa.string()), "product_id": pa.array(products, pa.string())})
        return {(row["user_id"], row["product_id"]): row for row in self._rows("references", wanted)}

    def _rows(self, table: str, wanted: pa.Table) -> list[dict[str, Any]]:
        self._base.register("wanted", wanted)
        try:
            keys = ", ".join(wanted.column_names)
            alike = f"PARTITION BY {keys}"
            found = self._base.sql(f"""
                SELECT *, count(*) OVER ({alike}) AS listed
                FROM (SELECT *, rowid AS place FROM "{table}" SEMI JOIN wanted USING ({keys}))
                QUALIFY row_number() OVER ({alike} ORDER BY place) = 1""")
            return found.to_arrow_table().to_pylist()
        finally:
            self._base.unregister("wanted")
