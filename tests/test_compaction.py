"""Compaction: the same rows make the same files, in bounded memory; what is not one row a pair is refused."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import (
    CAMPAIGN,
    begin,
    commit_plan,
    make_rows,
    pair_ids,
    refresh,
)

from adgen.creatives import compaction
from adgen.creatives.compaction import compact
from adgen.creatives.folder import FolderStorage
from adgen.creatives.publish import finish
from adgen.creatives.reading import open_published
from adgen.creatives.runs import read_run
from adgen.creatives.storage import Storage
from adgen.errors import RunError
from adgen.records import MANIFEST


def compacted(store: Storage, pairs: list[str], per_shard: int, **sizes) -> tuple:
    run = begin(store, f"{per_shard}")
    journal = commit_plan(run, pairs, per_shard)
    for part in journal.unfinished():
        journal.commit_part(part, make_rows(None, journal.read_plan_part(part)["pair_id"].to_pylist()))
    return compact(journal, journal.read_plan(), **sizes)


def test_the_manifest_is_sorted_listed_and_complete(store: Storage):
    pairs = pair_ids(50)
    files, counts = compacted(store, pairs, 7, rows_per_file=20, rows_in_memory=8)
    assert [file.rows for file in files] == [20, 20, 10]
    assert counts.rows == counts.ok == counts.generated == 50
    tables = []
    for file in files:
        data = store.read(file.key)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        tables.append(pq.read_table(pa.BufferReader(data)))
        keys = tables[-1]["user_key"].to_pylist()
        assert (keys[0], keys[-1], tables[-1].schema) == (file.first_user_key, file.last_user_key, MANIFEST)
    rows = pa.concat_tables(tables)
    order = list(zip(rows["user_key"].to_pylist(), rows["pair_id"].to_pylist(), strict=True))
    assert order == sorted(order)
    assert sorted(rows["pair_id"].to_pylist()) == sorted(pairs)


def test_the_same_rows_make_the_same_bytes(tmp_path: Path):
    """In whatever shards they came, however much memory there was, and however often it was tried."""
    store, pairs = FolderStorage(tmp_path), pair_ids(300)
    made = [
        compacted(store, pairs, 7, rows_per_file=128, rows_in_memory=64),
        compacted(store, pairs[::-1], 100, rows_per_file=128, rows_in_memory=9),
        compacted(store, pairs, 300, rows_per_file=128, rows_in_memory=10_000),
    ]
    assert len({tuple(file.sha256 for file in files) for files, _ in made}) == 1
    assert made[0][1] == made[1][1] == made[2][1]


def test_one_user_with_most_rows_is_cut_by_pair(tmp_path: Path):
    """The order goes on below the user key, so one key's rows need not fit in memory."""
    store = FolderStorage(tmp_path)
    pairs = [f"a{pair[1:]}" for pair in pair_ids(400)]  # the test's user is the first digit
    files, _ = compacted(store, pairs, 50, rows_per_file=100, rows_in_memory=16)
    assert [file.rows for file in files] == [100] * 4
    rows = pa.concat_tables(pq.read_table(pa.BufferReader(store.read(file.key))) for file in files)
    assert rows["pair_id"].to_pylist() == sorted(pairs)


def test_a_pair_planned_in_two_shards_is_found(store: Storage):
    with pytest.raises(RunError, match="has two rows of one variant"):
        compacted(store, pair_ids(5) + pair_ids(1), 5)


def test_compaction_waits_for_the_last_shard(store: Storage):
    run = begin(store)
    journal = commit_plan(run, pair_ids(5))
    with pytest.raises(RunError, match="2 of 2 shards are not done"):
        compact(journal, journal.read_plan())
    with pytest.raises(RunError, match="not done"):
        finish(run)
    assert read_run(store, CAMPAIGN, run.run_id).state == "RUNNING"


def test_compaction_of_nothing_makes_no_file(store: Storage):
    assert refresh(store, []).document.manifest == ()
    assert open_published(store, CAMPAIGN).run.counts.rows == 0


@pytest.mark.slow
def test_memory_of_compaction_does_not_grow_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compaction, "_ROWS_PER_GROUP", 500)
    monkeypatch.setattr(compaction, "_ROWS_PER_READ", 16)

    def peak_bytes(count: int) -> int:
        store = FolderStorage(tmp_path / str(count))
        journal = commit_plan(begin(store), pair_ids(count), 100)
        for part in journal.unfinished():
            journal.commit_part(part, make_rows(None, journal.read_plan_part(part)["pair_id"].to_pylist()))
        usual, counting = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
        pa.set_memory_pool(counting)
        try:
            compact(journal, journal.read_plan(), rows_in_memory=500)
        finally:
            pa.set_memory_pool(usual)
        return counting.max_memory()

    assert peak_bytes(12_000) < 1.5 * peak_bytes(3_000)
