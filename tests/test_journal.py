"""Plan and journal: a shard is committed once, and only with the rows that were planned."""

import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from support.runs import (
    CAMPAIGN,
    begin,
    commit_plan,
    do_shards,
    make_lineage,
    make_rows,
    pair_ids,
)

from adgen.creatives import layout
from adgen.creatives.journal import Journal
from adgen.creatives.s3 import S3Storage
from adgen.creatives.storage import S3Access, Storage, Taken
from adgen.errors import RunError, StoreError
from adgen.records import MANIFEST


def planned(store: Storage, pairs: list[str]) -> Journal:
    return commit_plan(begin(store), pairs, pairs_per_shard=3)


def test_the_plan_says_parts_rows_and_hashes(store: Storage):
    journal = planned(store, pair_ids(7))
    plan = journal.read_plan()
    assert [(part.index, part.rows) for part in plan.parts] == [(0, 3), (1, 3), (2, 1)]
    assert plan.rows == 7
    assert all(len(part.sha256) == 64 for part in plan.parts)
    assert (plan.settings_digest, plan.inputs) == ("settings", {"pairs": "etag"})
    assert journal.read_plan_part(plan.parts[2])["pair_id"].to_pylist() == pair_ids(1, first=6)


def test_a_plan_is_committed_once(store: Storage):
    journal = planned(store, pair_ids(3))
    part = journal.write_plan_part(0, pa.table({"pair_id": pair_ids(5)}))
    with pytest.raises(StoreError, match="another driver planned this run"):
        journal.commit_plan([part], settings_digest="", inputs={}, base_run=None, pointer_etag=None, pointer_generation=0)
    assert journal.read_plan().rows == 3
    assert journal.read_plan_part(journal.read_plan().parts[0]).num_rows == 3


def test_a_plan_with_a_gap_is_refused(store: Storage):
    journal = Journal(store, CAMPAIGN, begin(store).run_id)
    part = journal.write_plan_part(1, pa.table({"pair_id": pair_ids(1)}))
    with pytest.raises(RunError, match="without a gap"):
        journal.commit_plan([part], settings_digest="", inputs={}, base_run=None, pointer_etag=None, pointer_generation=0)
    with pytest.raises(RunError, match="no column pair_id"):
        journal.write_plan_part(0, pa.table({"user_id": ["u"]}))


def test_a_plan_part_that_changed_is_found(store: Storage):
    journal = planned(store, pair_ids(3))
    part = journal.read_plan().parts[0]
    store.put(layout.plan_part(CAMPAIGN, journal.run_id, 0, part.sha256), b"something else")
    with pytest.raises(RunError, match=r"not what plan\.json committed"):
        journal.read_plan_part(part)


def test_unfinished_is_what_has_no_journal_part(store: Storage):
    journal = planned(store, pair_ids(7))
    parts = journal.unfinished()
    assert [part.index for part in parts] == [0, 1, 2]
    pairs = journal.read_plan_part(parts[1])["pair_id"].to_pylist()
    worker = pickle.loads(pickle.dumps(journal))
    assert worker.commit_part(parts[1], make_rows(store, pairs), make_lineage(pairs))
    assert [part.index for part in journal.unfinished()] == [0, 2]
    do_shards(journal)
    assert journal.unfinished() == []
    assert journal.read_part(1)["pair_id"].to_pylist() == pairs
    assert journal.read_lineage(1)["pair_id"].to_pylist() == pairs


def test_a_second_worker_on_a_shard_changes_nothing(store: Storage):
    journal = planned(store, pair_ids(3))
    (part,) = journal.unfinished()
    assert journal.commit_part(part, make_rows(store, pair_ids(3), "first"), make_lineage(pair_ids(3)))
    other = make_lineage(pair_ids(3)).set_column(10, "attempt", pa.array([7, 7, 7], pa.int32()))
    assert not journal.commit_part(part, make_rows(store, pair_ids(3), "second"), other)
    assert set(journal.read_part(0)["title"].to_pylist()) == {"first"}
    assert set(journal.read_lineage(0)["attempt"].to_pylist()) == {0}


def test_many_workers_on_a_shard_have_one_winner(store: Storage):
    journal = planned(store, pair_ids(3))
    (part,) = journal.unfinished()

    def attempt(number: int) -> bool:
        start.wait()
        return journal.commit_part(
            part, make_rows(None, pair_ids(3)).set_column(12, MANIFEST.field("title"), pa.array([str(number)] * 3))
        )

    start = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert won.count(True) == 1
    assert set(journal.read_part(0)["title"].to_pylist()) == {str(won.index(True))}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (pair_ids(2), "1 missing, 0 not planned"),
        (pair_ids(4), "0 missing, 1 not planned"),
        (pair_ids(2) + pair_ids(1, first=50), "1 missing, 1 not planned"),
        ([*pair_ids(3), pair_ids(1)[0]], "0 missing, 1 not planned or twice"),
        ([pair_ids(1)[0]] * 3, "2 missing, 2 not planned or twice"),
    ],
    ids=["missing", "extra", "other", "doubled", "same thrice"],
)
def test_a_part_that_differs_from_its_plan_is_refused(store: Storage, made: list[str], message: str):
    journal = planned(store, pair_ids(3))
    (part,) = journal.unfinished()
    with pytest.raises(RunError, match=message):
        journal.commit_part(part, make_rows(None, made), make_lineage(made))
    assert len(journal.unfinished()) == 1
    assert list(store.entries(f"{layout.private_run(CAMPAIGN, journal.run_id)}lineage/")) == []


def test_variants_are_compared_too(store: Storage):
    journal = Journal(store, CAMPAIGN, begin(store).run_id)
    pairs = pair_ids(1) * 2
    part = journal.write_plan_part(0, pa.table({"pair_id": pairs, "variant": [0, 1]}))
    rows = make_rows(None, pairs)
    with pytest.raises(RunError, match="not the plan's"):
        journal.commit_part(part, rows)
    rows = rows.set_column(2, rows.schema.field("variant"), pa.array([1, 0], pa.int32()))
    assert journal.commit_part(part, rows)


@pytest.mark.parametrize("fault", ["column missing", "null key", "wrong type"])
def test_rows_of_another_schema_are_refused(store: Storage, fault: str):
    journal = planned(store, pair_ids(1))
    (part,) = journal.unfinished()
    rows = make_rows(None, pair_ids(1))
    if fault == "column missing":
        rows = rows.drop_columns(["gates"])
    elif fault == "null key":
        rows = rows.set_column(5, "user_key", pa.array([None], pa.string()))
    else:
        rows = rows.set_column(15, "bytes", pa.array(["many"]))
    with pytest.raises(RunError, match="rows of shard 0"):
        journal.commit_part(part, rows)
    assert len(journal.unfinished()) == 1


def test_a_lost_answer_to_a_commit_is_a_commit(s3_uri: str, s3_access: S3Access, monkeypatch: pytest.MonkeyPatch):
    """On S3 a PUT may win and be repeated by botocore, which then sees 412."""
    store = S3Storage(s3_uri, s3_access)
    journal = planned(store, pair_ids(2))
    (part,) = journal.unfinished()
    put = store._client.put_object
    monkeypatch.setattr(store._client, "put_object", lambda **request: (put(**request), put(**request))[1])
    assert journal.commit_part(part, make_rows(None, pair_ids(2)))


def test_a_shard_of_a_run_that_was_taken_over_still_commits_once(store: Storage):
    """Commits are safe even if both drivers' workers run."""
    old = commit_plan(begin(store), pair_ids(3))
    new = Journal(store, CAMPAIGN, begin(store).run_id)
    part = new.unfinished()[0]
    assert old.commit_part(part, make_rows(store, pair_ids(3), "old"))
    assert not new.commit_part(part, make_rows(store, pair_ids(3), "new"))
    with pytest.raises(Taken):
        store.create(layout.journal_part(CAMPAIGN, new.run_id, 0), b"")


_THREADS = """
import os
import pyarrow as pa
from adgen.creatives.journal import from_parquet, to_parquet
data = to_parquet(pa.table({"a": list(range(100_000)), "b": ["x"] * 100_000}))
before = len(os.listdir("/proc/self/task"))
assert from_parquet(data).num_rows == 100_000
assert len(os.listdir("/proc/self/task")) == before
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_reading_a_part_starts_no_threads():
    """A process that ends beside Arrow's threads is aborted now and then, and its exit code with it."""
    done = subprocess.run([sys.executable, "-c", _THREADS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
