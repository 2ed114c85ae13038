"""How far apart backgrounds are: of one pair's creatives between seeds, of one product's between users.

A run of one creative a pair has no seeds to compare; it still shows whether a product looks alike for
everybody, which personalization must not do. That it does not is no proof of it: a model that ignores its users draws another
background each time, too, and then users differ no more than seeds do. Values lie in one file of the evaluation, so that two
evaluations are compared pair by pair and product by product.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adgen.evaluation.results.features import FEATURES, from_bytes
from adgen.evaluation.results.rows import opened
from adgen.evaluation.statistics import Change, ClusteredMeans, Estimate

DIVERSITY = "diversity.parquet"
SEED_DIVERSITY, USER_DIVERSITY = "seed_diversity", "user_diversity"
_NAMES = (SEED_DIVERSITY, USER_DIVERSITY)
_ROWS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("drawn", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""Which diversity, of which pair or product, whose rows are alike (a user's, or the product's), 1 - cosine."""
_BATCH = 4096


def write_diversity(folder: Path, has_seeds: bool) -> None:
    """Write DIVERSITY of the evaluation in `folder`, from its features."""
    values = itertools.chain(_between_seeds(folder) if has_seeds else (), _between_users(folder))
    with pq.ParquetWriter(folder / DIVERSITY, _ROWS, compression="zstd") as writer:
        while batch := list(itertools.islice(values, _BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, _ROWS))


def mean_diversity(folder: Path) -> dict[str, Estimate]:
    """SEED_DIVERSITY: mean over pairs that have several creatives, users taken for the interval. USER_DIVERSITY: mean over
    products that several users got, products taken. One that nothing has is left out."""
    means = ClusteredMeans(_NAMES)
    with pq.ParquetFile(folder / DIVERSITY) as file:
        for batch in file.iter_batches(_BATCH):
            means.add(batch["drawn"].to_pylist(), _by_name(batch, "value"))
    return means.estimates()


def compare_diversity(here: Path, there: Path) -> dict[str, Change]:
    """By name, over the pairs and products that both evaluations have."""
    if not ((here / DIVERSITY).is_file() and (there / DIVERSITY).is_file()):
        return {}
    means = {column: ClusteredMeans(_NAMES) for column in ("here", "there", "difference")}
    query = """SELECT name, here.drawn, here.value AS here, there.value AS there, here.value - there.value AS difference
        FROM read_parquet($here) here JOIN read_parquet($there) there USING (name, key) ORDER BY name, drawn, key"""
    files = {"here": str(here / DIVERSITY), "there": str(there / DIVERSITY)}
    with duckdb.connect() as base:
        for batch in base.sql(query, params=files).to_arrow_reader(_BATCH):
            for column, each in means.items():
                each.add(batch["drawn"].to_pylist(), _by_name(batch, column))
    mine, theirs = means["here"].estimates(), means["there"].estimates()
    return {name: Change(mine[name].mean, theirs[name].mean, each) for name, each in means["difference"].differences().items()}


def _by_name(batch: pa.RecordBatch, column: str) -> np.ndarray:
    """(n, len(_NAMES)): each value in the column of its diversity, NaN in the other."""
    values, names = batch[column].to_numpy(), np.asarray(batch["name"].to_pylist(), dtype=str)
    return np.stack([np.where(names == name, values, np.nan) for name in _NAMES], axis=1)


# -- from features -------------------------------------------------------------------------------------------------------------


def _between_seeds(folder: Path) -> Iterator[dict[str, Any]]:
    rows = _sorted(folder, "user_key, pair_id, variant")
    for (user, pair), group in itertools.groupby(rows, lambda row: (row["user_key"], row["pair_id"])):
        yield from _value(SEED_DIVERSITY, pair, user, group)


def _between_users(folder: Path) -> Iterator[dict[str, Any]]:
    """A user counts once a product, with the first seed: seeds differ for one user, too."""
    rows = _sorted(folder, "product_id, user_key, pair_id", "variant = 0")
    firsts = (next(group) for _, group in itertools.groupby(rows, lambda row: (row["product_id"], row["user_key"])))
    for product, group in itertools.groupby(firsts, lambda row: row["product_id"]):
        yield from _value(USER_DIVERSITY, product, product, group)


def _value(name: str, key: str, drawn: str, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if (value := _mean_distance(from_bytes(row["background"]) for row in rows)) is not None:
        yield {"name": name, "key": key, "drawn": drawn, "value": value}


def _sorted(folder: Path, order: str, where: str = "true") -> Iterator[dict[str, Any]]:
    query = f"SELECT pair_id, user_key, product_id, background FROM here WHERE {where} AND background IS NOT NULL"
    with opened(FEATURES, here=folder) as base:
        for batch in base.sql(f"{query} ORDER BY {order}").to_arrow_reader(_BATCH):
            yield from batch.to_pylist()


def _mean_distance(features: Iterator[np.ndarray]) -> float | None:
    """Mean of 1 - cosine over pairs of features that stream by, from the sum of their unit vectors. None for fewer than two."""
    total, count = 0.0, 0
    for feature in features:
        total, count = total + feature / max(float(np.linalg.norm(feature)), 1e-6), count + 1
    if count < 2:
        return None
    distance = float(1 - (np.dot(total, total) - count) / (count * (count - 1)))
    return max(0.0, distance)  # pictures that are alike are not below 0 by rounding
