"""The catalog: products made ready for the model, memory-mapped, looked up by product id.

One refresh, on any number of machines:

    numbers = split_products(inputs, folder, num_buckets)               # what pairs and histories name
    previous = last_catalog(storage, model_digest, campaign, cache_dir)
    for number in numbers:
        products = read_products(folder, number)
        changes = changed_products(products, previous_rows(previous, products), inputs)
        rows = [encode_products(batch, encoders) for batch in changes.work]     # the workers' part
        buckets.append(write_bucket(storage, model_digest, number, [changes.kept, *rows]))
    index = write_catalog(storage, model_digest, campaign, buckets, num_buckets, embedding, size)
    catalog = open_catalog(storage, model_digest, index.name, cache_dir)

`build_catalog` is that loop in one process. Files that are not named by a campaign's last index or by an unfinished plan
may be removed at any time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from adgen.creatives.storage import Storage
from adgen.errors import InputError
from adgen.shop.catalog.buckets import bucket_count, product_key, read_products, split_products
from adgen.shop.catalog.files import CatalogBucket, CatalogFile, CatalogIndex, fetch_file, last_index, read_index, write_bucket
from adgen.shop.catalog.files import write_catalog as write_catalog
from adgen.shop.catalog.rows import FACT_NAMES, ID_NAMES, Changes, Encoders, changed_products, encode_products, row_schema
from adgen.shop.inputs.tables import Inputs
from adgen.shop.similarity import EMBEDDING_SIZE


class _Rows:
    """Files of one kind as one table sorted by key; found by product id."""

    def __init__(self, paths: Iterable[Path], schema: pa.Schema):
        tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]
        self.table = pa.concat_tables(tables) if tables else schema.empty_table()
        self._keys = self.table["key"].to_numpy()

    def positions(self, product_ids: Sequence[str]) -> np.ndarray:
        """The row of each product, -1 for one that is not there."""
        keys = np.fromiter(map(product_key, product_ids), np.uint64, len(product_ids))
        found = np.searchsorted(self._keys, keys)
        out, open_ = np.full(len(keys), -1), np.arange(len(keys))
        names = np.asarray(product_ids, dtype=object)
        while len(open_):  # a second round only where two ids share a key
            open_ = open_[found[open_] < len(self._keys)]
            open_ = open_[self._keys[found[open_]] == keys[open_]]
            there = np.asarray(self.table["product_id"].take(pa.array(found[open_])).to_pylist(), dtype=object)
            same = there == names[open_] if len(open_) else np.zeros(0, bool)
            out[open_[same]] = found[open_[same]]
            open_ = open_[~same]
            found[open_] += 1
        return out

    def known(self, product_ids: Sequence[str], what: str) -> np.ndarray:
        """`positions`, InputError where there is none."""
        found = self.positions(product_ids)
        if (found < 0).any():
            missing = product_ids[int(np.argmax(found < 0))]
            raise InputError(f"product {missing!r} has no {what} in this catalog; the plan was made with another one")
        return found


def _nullable(positions: np.ndarray) -> pa.Array:
    return pa.array(positions, mask=positions < 0)


class Catalog:
    """Look-ups in one index's files. Pickles as the index and the cache folder; files are fetched when first needed."""

    def __init__(self, storage: Storage, index: CatalogIndex, cache_dir: str | Path):
        self.storage, self.index, self.cache_dir = storage, index, str(cache_dir)
        self._opened: dict[str, _Rows] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": {}}

    def fetch(self, kinds: Sequence[Literal["ids", "facts"]] = ("ids",)) -> int:
        """Put the node's copies into its cache folder ahead of time; their bytes."""
        files = [getattr(bucket, kind) for bucket in self.index.buckets for kind in kinds]
        for file in files:
            self._path(file)
        return sum(file.bytes for file in files)

    # -- what a worker asks ------------------------------------------------------------------------------------

    def codes(self, product_ids: Sequence[str]) -> np.ndarray:
        """Image tokens of clicked products, (n, tokens) int64; InputError names a product that has none."""
        ids = self._rows("ids")
        rows = ids.table["codes"].take(pa.array(ids.known(product_ids, "picture codes"))).to_pylist()
        return np.frombuffer(b"".join(rows), "<u2").reshape(len(rows), -1 if rows else 0).astype(np.int64)

    def clicked(self, product_ids: Iterable[str]) -> dict[str, tuple[str, bytes]]:
        """Of each different clicked product its title and its image tokens as the file has them ("<u2"): one look-up for both."""
        distinct, ids = list(dict.fromkeys(product_ids)), self._rows("ids")
        rows = pa.array(ids.known(distinct, "picture codes"))
        titles, codes = (ids.table[column].take(rows).to_pylist() for column in ("title", "codes"))
        return {product: (title or "", code) for product, title, code in zip(distinct, titles, codes, strict=True)}

    def title_ids(self, product_ids: Sequence[str]) -> list[list[int]]:
        """Title tokens of clicked products."""
        return self._of_clicked("title_ids", product_ids)

    def titles(self, product_ids: Sequence[str]) -> list[str]:
        """Titles of clicked products; one that has none is ""."""
        return [title or "" for title in self._of_clicked("title", product_ids)]

    def _of_clicked(self, column: str, product_ids: Sequence[str]) -> list:
        ids = self._rows("ids")
        return ids.table[column].take(pa.array(ids.known(product_ids, "picture codes"))).to_pylist()

    # -- what the planner asks ---------------------------------------------------------------------------------

    def facts(self, product_ids: Sequence[str]) -> pa.Table:
        """A row of facts for each product, all nulls for one that is not in the catalog; no embeddings."""
        facts = self._rows("facts")
        positions = _nullable(facts.positions(product_ids))
        return facts.table.drop_columns("embedding").take(positions)

    def embeddings(self, product_ids: Sequence[str]) -> np.ndarray:
        """Title embeddings, (n, size) float16; zeros for a product that is not in the catalog."""
        facts = self._rows("facts")
        positions = facts.positions(product_ids)
        out = np.zeros((len(positions), self.index.embedding_size), np.float16)
        start = 0
        for chunk in facts.table["embedding"].chunks:
            here = (positions >= start) & (positions < start + len(chunk))
            values = chunk.flatten().to_numpy().reshape(len(chunk), out.shape[1])  # 0 rows where no product is asked for
            out[here] = values[positions[here] - start]
            start += len(chunk)
        return out

    def rows(self, product_ids: Sequence[str]) -> pa.Table:
        """Whole rows of the products that are in the catalog, for `changed_products`."""
        facts, ids = self._rows("facts"), self._rows("ids")
        positions = facts.positions(product_ids)
        found = facts.table.take(pa.array(positions[positions >= 0]))
        model = ids.table.take(_nullable(ids.positions(found["product_id"].to_pylist())))
        for name in ("title_ids", "codes"):
            found = found.append_column(model.schema.field(name), model[name])
        return found.select(self._schema.names)

    @property
    def _schema(self) -> pa.Schema:
        return row_schema(self.index.embedding_size)

    def _rows(self, kind: Literal["ids", "facts"]) -> _Rows:
        if kind not in self._opened:
            files = [getattr(bucket, kind) for bucket in self.index.buckets]
            names = ID_NAMES if kind == "ids" else [*FACT_NAMES, "embedding"]
            self._opened[kind] = _Rows(map(self._path, files), pa.schema([self._schema.field(name) for name in names]))
        return self._opened[kind]

    def _path(self, file: CatalogFile) -> Path:
        return fetch_file(self.storage, self.index.model_digest, file, self.cache_dir)


def open_catalog(storage: Storage, model_digest: str, index_name: str, cache_dir: str | Path) -> Catalog:
    """The catalog of that index."""
    return Catalog(storage, read_index(storage, model_digest, index_name), cache_dir)


def last_catalog(storage: Storage, model_digest: str, name: str, cache_dir: str | Path) -> Catalog | None:
    """The catalog that `name` (a campaign) used last; None the first time."""
    index = last_index(storage, model_digest, name)
    return Catalog(storage, index, cache_dir) if index else None


def previous_rows(previous: Catalog | None, products: pa.Table, size: int = EMBEDDING_SIZE) -> pa.Table:
    """What the last catalog knows of a bucket's products; no rows the first time."""
    return previous.rows(products["product_id"].to_pylist()) if previous else row_schema(size).empty_table()


def inspect_bucket(number: int, folder: str | Path, inputs: Inputs, previous: Catalog | None, embedding: str) -> Changes:
    """One bucket's `changed_products`: a task of its own."""
    products = read_products(folder, number)
    embed_again = previous is not None and previous.index.embedding != embedding
    return changed_products(products, previous_rows(previous, products), inputs, embed_again=embed_again)


def previous_bucket(number: int, num_buckets: int, kept: pa.Table, previous: Catalog | None) -> CatalogBucket | None:
    """The last catalog's entry of a bucket of which all rows were kept, where it has just these; else None."""
    if previous is None or previous.index.num_buckets != num_buckets:
        return None
    old = next((bucket for bucket in previous.index.buckets if bucket.number == number), None)
    return old if old and old.facts.rows == kept.num_rows else None  # kept rows are a part of the old ones


@dataclass(frozen=True)
class CatalogPlace:
    """Where a campaign's catalog is."""

    storage: Storage
    model_digest: str
    name: str
    """Of the campaign."""
    cache_dir: str | Path
    """Where this node keeps its copies of the files."""


def build_catalog(
    inputs: Inputs,
    place: CatalogPlace,
    encoders: Encoders,
    folder: str | Path,
    run: Callable[[Callable, Iterable], Iterable] = map,
) -> Catalog:
    """The campaign's catalog for these inputs. `folder` is local scratch room. `run` maps a function over batches: `map`, or
    something parallel."""
    storage, model_digest = place.storage, place.model_digest
    num_buckets = bucket_count(inputs["products"].num_rows)
    previous = last_catalog(storage, model_digest, place.name, place.cache_dir)
    buckets = []
    for number in split_products(inputs, folder, num_buckets):
        changes = inspect_bucket(number, folder, inputs, previous, encoders.embedding)
        rows = list(run(partial(encode_products, encoders=encoders), changes.work))
        old = None if rows else previous_bucket(number, num_buckets, changes.kept, previous)
        parts = [part for part in (changes.kept, *rows) if part.num_rows]
        buckets.append(old or write_bucket(storage, model_digest, number, parts))
    index = write_catalog(storage, model_digest, place.name, buckets, num_buckets, encoders.embedding, encoders.embedding_size)
    return Catalog(storage, index, place.cache_dir)
