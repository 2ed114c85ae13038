"""Pass 1 of the plan: everything about one user into one bucket file, so that pass 2 can join a bucket in memory.

A bucket is a range of the users' ranks (a hash of the id), and rows are planned in the order of the ranks: the plan is
the same whatever the number of buckets, and its first N pairs are the same N. A bucket's size does not grow with the
campaign; where there are more buckets than files can be open, they are split in two steps.

Manifest rows name no user, and the secret behind user_key may have changed since. So the published rows are taken from
the journal parts of their run, each together with its lineage, which does name the user: no join over all pairs is
needed to find a row's bucket.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adgen.creatives.journal import Journal
from adgen.creatives.lost_objects import lost_objects
from adgen.records import HISTORIES, LINEAGE, MANIFEST, PAIRS
from adgen.shop.catalog.buckets import bucket_count, product_key
from adgen.shop.inputs.tables import InputFile, Inputs

log = logging.getLogger(__name__)

PAIRS_PER_BUCKET = 16_384
MOST_OPEN = 512  # files of one split
_PARTS_IN_FLIGHT = 16

# What a carried row's lineage has that its manifest row has not.
LINEAGE_ONLY = [field for field in LINEAGE if field.name not in MANIFEST.names]
PUBLISHED = pa.schema([*MANIFEST, *(field.with_nullable(True) for field in LINEAGE_ONLY)])
_RANK = pa.field("user_rank", pa.uint64())
_SCHEMAS = {"pairs": PAIRS, "histories": HISTORIES, "published": PUBLISHED}
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


@dataclass(frozen=True)
class Bucket:
    """The rows of a range of users; each table has a column user_rank (uint64) after its own."""

    pairs: pa.Table
    histories: pa.Table
    published: pa.Table


def plan_bucket_count(num_pairs: int) -> int:
    """Buckets for a plan of `num_pairs` pairs; a power of two."""
    return bucket_count(num_pairs, PAIRS_PER_BUCKET)


def coarse_bucket_count(num_buckets: int) -> int:
    """Into how many of them the inputs are split at first; `read_buckets` splits each again."""
    return min(num_buckets, MOST_OPEN)


def clear_buckets(folder: str | Path) -> None:
    """Remove what an earlier, killed plan left in `folder`; before the first split."""
    for name in _SCHEMAS:
        shutil.rmtree(Path(folder) / name, ignore_errors=True)


def split_inputs(
    inputs: Inputs, table: str, folder: str | Path, num_buckets: int, files: Iterable[InputFile] | None = None, part: int = 0
) -> int:
    """Spread `pairs` or `histories`, or some of its files, over the buckets; the rows. `part` numbers the callers."""
    schema = _SCHEMAS[table]
    batches = inputs[table].batches(schema.names, files=None if files is None else list(files))
    tables = (pa.Table.from_batches([batch]).select(schema.names) for batch in batches)
    return _split(map(_ranked, tables), table, Path(folder), num_buckets, part)


def split_published(
    base: Journal, folder: str | Path, num_buckets: int, indexes: Iterable[int] | None = None, part: int = 0
) -> int:
    """Spread the rows of the base run's shards (or of those in `indexes`) over the buckets, with their lineage; the rows.

    A row without lineage, of an erased user whose lineage is gone, or with an object that is not in the store any more is left
    out: its pair is generated again.
    """
    chosen = sorted(base.done()) if indexes is None else list(indexes)
    if len(lost := lost_objects(base)):
        log.warning("%d objects of run %s are not in %s: they are made again", len(lost), base.run_id, base.storage.uri)
    with ThreadPoolExecutor(_PARTS_IN_FLIGHT) as pool:
        tables = _ahead(pool, partial(_published_part, base, lost), chosen)
        return _split(map(_ranked, tables), "published", Path(folder), num_buckets, part)


def read_buckets(folder: str | Path, num_buckets: int) -> Iterator[Bucket]:
    """All buckets in order, of what was split into `coarse_bucket_count(num_buckets)`: each of those is split when it is due."""
    coarse = coarse_bucket_count(num_buckets)
    fine, again = num_buckets // coarse, Path(folder) / "again"
    for number in range(coarse):
        if fine == 1:
            yield read_bucket(folder, number)
            continue
        clear_buckets(again)
        for name in _SCHEMAS:
            _split(_stored_tables(folder, name, number), name, again, num_buckets, 0)
        for finer in range(number * fine, (number + 1) * fine):
            yield read_bucket(again, finer)
    clear_buckets(again)


def read_bucket(folder: str | Path, number: int) -> Bucket:
    """One bucket's rows, as plain Arrow tables that can be sent to a worker."""
    tables = {}
    for name, schema in _SCHEMAS.items():
        parts = [pa.ipc.open_stream(pa.memory_map(str(path))).read_all() for path in _files(folder, name, number)]
        tables[name] = pa.concat_tables(parts) if parts else _nullable(schema).empty_table()
    return Bucket(**tables)


def user_rank(user_id: str | None) -> int:
    """Where a user is in the order of the plan, 0 <= rank < 2**64."""
    return product_key(user_id or "")


def _files(folder: str | Path, name: str, number: int) -> list[Path]:
    return sorted((Path(folder) / name).glob(f"{number:05d}-*.arrow"))


def _stored_tables(folder: str | Path, name: str, number: int) -> Iterator[pa.Table]:
    """A coarse bucket, a batch at a time."""
    for path in _files(folder, name, number):
        yield from (pa.table(batch) for batch in pa.ipc.open_stream(pa.memory_map(str(path))))


def _split(tables: Iterable[pa.Table], name: str, folder: Path, num_buckets: int, part: int) -> int:
    """Spread tables with user_rank over bucket files."""
    schema, rows, writers = _nullable(_SCHEMAS[name]), 0, {}
    (folder / name).mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        for table in tables:
            rows += table.num_rows
            for bucket, share in _shares(table.cast(schema), num_buckets):
                if bucket not in writers:
                    path = folder / name / f"{bucket:05d}-{part:05d}.arrow"
                    writers[bucket] = opened.enter_context(pa.ipc.new_stream(str(path), schema, options=_OPTIONS))
                writers[bucket].write_table(share)
    return rows


def _ranked(table: pa.Table) -> pa.Table:
    """The table with each row's user_rank."""
    users = table["user_id"].combine_chunks().dictionary_encode(null_encoding="encode")
    ranks = np.array([user_rank(user) for user in users.dictionary.to_pylist()], np.uint64)
    return table.append_column(_RANK, [ranks[users.indices.to_numpy()]])


def _shares(table: pa.Table, num_buckets: int) -> Iterator[tuple[int, pa.Table]]:
    """The table's rows by bucket."""
    if not table.num_rows:
        return
    ranks = table[_RANK.name].to_numpy()
    shift = 64 - (num_buckets.bit_length() - 1)
    buckets = (ranks >> np.uint64(shift)).astype(np.int64) if num_buckets > 1 else np.zeros(len(ranks), np.int64)
    order = np.argsort(buckets, kind="stable")
    table = table.take(pa.array(order))
    present, starts = np.unique(buckets[order], return_index=True)
    for bucket, start, end in zip(present, starts, [*starts[1:], table.num_rows], strict=True):
        yield int(bucket), table.slice(start, end - start)


def _published_part(base: Journal, lost: pa.Array, index: int) -> pa.Table:
    rows, lineage = _without_lost(base.read_part(index), lost), base.read_lineage(index)
    if lineage is None:
        return PUBLISHED.empty_table()
    found = pc.index_in(_keys(rows), value_set=_keys(lineage))
    extra = lineage.select([field.name for field in LINEAGE_ONLY]).take(found)
    joined = pa.Table.from_arrays([*rows.columns, *extra.columns], schema=PUBLISHED)
    return joined.filter(joined["user_id"].is_valid())


def _keys(table: pa.Table) -> pa.Array:
    """pair_id and variant of each row, as one string."""
    variants = table["variant"].cast(pa.string())
    return pc.binary_join_element_wise(table["pair_id"], variants, "/").combine_chunks()


def _without_lost(rows: pa.Table, lost: pa.Array) -> pa.Table:
    """The rows whose picture and renditions are all there."""
    if not len(lost):
        return rows
    renditions = rows["renditions"].combine_chunks()
    is_lost = pc.is_in(pc.struct_field(pc.list_flatten(renditions), "sha256"), value_set=lost)
    without = pc.is_in(rows["sha256"], value_set=lost).to_numpy()
    without[pc.list_parent_indices(renditions).filter(is_lost).to_numpy()] = True
    return rows.filter(pa.array(~without))


def _ahead(pool: ThreadPoolExecutor, read: Callable[[int], pa.Table], indexes: list[int]) -> Iterator[pa.Table]:
    for start in range(0, len(indexes), _PARTS_IN_FLIGHT):
        yield from pool.map(read, indexes[start : start + _PARTS_IN_FLIGHT])


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([*(field.with_nullable(True) for field in schema), _RANK])
