"""Clean-up: takes what no kept run names and nothing else, beside running refreshes, and goes on after a crash."""

import shutil
import time
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from support.runs import (
    CAMPAIGN,
    Crash,
    CrashingStorage,
    WrappedStorage,
    begin,
    commit_plan,
    make_older,
    make_rows,
    pair_ids,
    refresh,
)

from adgen.creatives import layout
from adgen.creatives.cleanup import clean_up
from adgen.creatives.folder import FolderStorage
from adgen.creatives.journal import Journal
from adgen.creatives.objects import put_object
from adgen.creatives.publish import read_pointer, rollback
from adgen.creatives.runs import list_runs, read_run
from adgen.creatives.storage import Storage
from adgen.creatives.verify import verify
from adgen.errors import ConsumerError, SettingsError, StoreError

DAYS = 86_400.0


DAYS = 86_400.0


def test_clean_up_keeps_the_newest_runs_and_all_they_name(store: Storage):
    made = [refresh(store, pair_ids(4), f"look {night}") for night in range(5)]
    done = clean_up(store, CAMPAIGN, keep_runs=2, now=time.time() + 10 * DAYS)
    assert [run.run_id for run in list_runs(store, CAMPAIGN)] == [made[4].run_id, made[3].run_id]
    assert (done.runs, done.objects) == (3, 9)
    assert len(list(store.entries(layout.OBJECTS))) == 6
    assert verify(store, CAMPAIGN).problems == []
    assert rollback(store, CAMPAIGN, made[3].run_id).generation == 6
    assert verify(store, CAMPAIGN).problems == []
    left = [entry.key for entry in store.entries("") if made[0].run_id in entry.key]
    assert left == []


def test_clean_up_spares_young_objects(store: Storage):
    refresh(store, pair_ids(4), "old")
    for night in range(2):
        refresh(store, pair_ids(4), f"look {night}")
    uri = put_object(store, b"a run is about to name it", "webp").uri
    assert clean_up(store, CAMPAIGN, keep_runs=2, now=time.time() + 1.9 * DAYS).objects == 0
    assert clean_up(store, CAMPAIGN, keep_runs=2, now=time.time() + 2.1 * DAYS).objects == 4
    assert store.get(uri) is None


def test_clean_up_goes_by_the_longest_run(folder_store: Storage):
    run = refresh(folder_store, pair_ids(4))
    put_object(folder_store, b"unnamed", "webp")
    long = read_run(folder_store, CAMPAIGN, run.run_id)
    long = long.model_copy(update={"created_at": long.updated_at - timedelta(days=3)})
    key = layout.run_document(CAMPAIGN, run.run_id)
    folder_store.swap(key, long.to_bytes(), folder_store.get(key).etag)
    assert clean_up(folder_store, CAMPAIGN, now=time.time() + 5.9 * DAYS).objects == 0
    assert clean_up(folder_store, CAMPAIGN, now=time.time() + 6.1 * DAYS).objects == 1


def test_clean_up_keeps_unfinished_runs_their_base_and_their_objects(store: Storage):
    base = refresh(store, pair_ids(4), "base")
    newer = [refresh(store, pair_ids(4), f"look {night}", resume_key="other") for night in range(3)]
    rollback(store, CAMPAIGN, base.run_id)
    unfinished = begin(store, "interrupted")
    journal = commit_plan(unfinished, pair_ids(8))
    pairs = journal.read_plan_part(journal.unfinished()[0])["pair_id"].to_pylist()
    journal.commit_part(journal.unfinished()[0], make_rows(store, pairs, "half done"))
    rollback(store, CAMPAIGN, newer[2].run_id)
    clean_up(store, CAMPAIGN, keep_runs=2, now=time.time() + 10 * DAYS)
    left = {run.run_id for run in list_runs(store, CAMPAIGN)}
    assert left == {base.run_id, unfinished.run_id, newer[1].run_id, newer[2].run_id}
    for row in Journal(store, CAMPAIGN, unfinished.run_id).read_part(0).to_pylist():
        assert store.head(row["uri"])
    assert begin(store, "interrupted").run_id == unfinished.run_id


def test_clean_up_keeps_the_published_run_however_old(folder_store: Storage):
    old = refresh(folder_store, pair_ids(4), "old")
    for night in range(3):
        refresh(folder_store, pair_ids(4), f"look {night}")
    rollback(folder_store, CAMPAIGN, old.run_id)
    clean_up(folder_store, CAMPAIGN, keep_runs=2, now=time.time() + 10 * DAYS)
    assert verify(folder_store, CAMPAIGN).problems == []
    assert read_pointer(folder_store, CAMPAIGN)[0].run_id == old.run_id


def test_clean_up_of_one_campaign_spares_the_objects_of_another(folder_store: Storage):
    refresh(folder_store, pair_ids(4))
    clean_up(folder_store, "another", now=time.time() + 10 * DAYS)
    assert verify(folder_store, CAMPAIGN).problems == []


def test_a_clean_up_that_dies_anywhere_is_finished_by_the_next(tmp_path: Path):
    at, before, now = 0, FolderStorage(tmp_path / "before"), time.time() + 10 * DAYS
    run_ids = [refresh(before, pair_ids(2) if night == 0 else []).run_id for night in range(3)]
    while True:
        store = FolderStorage(tmp_path / str(at))
        shutil.copytree(before.root, store.root)
        try:
            clean_up(CrashingStorage(store, at), CAMPAIGN, keep_runs=2, now=now)
            break
        except Crash:
            clean_up(store, CAMPAIGN, keep_runs=2, now=now)
        assert len(list_runs(store, CAMPAIGN)) == 2
        assert list(store.entries(layout.OBJECTS)) == []
        assert not [entry for entry in store.entries("") if run_ids[0] in entry.key]
        assert verify(store, CAMPAIGN).problems == []
        at += 1
    assert at > 15


def test_a_run_that_is_rolled_back_to_at_that_moment_is_spared(folder_store: Storage):
    class RolledBackMeanwhile(WrappedStorage):
        def act(self, name: str, *arguments):
            if name == "swap" and arguments[0] == layout.run_document(CAMPAIGN, old.run_id) and not moved:
                moved.append(rollback(folder_store, CAMPAIGN, old.run_id))
            return super().act(name, *arguments)

    moved: list = []
    old = refresh(folder_store, pair_ids(4), "old")
    for night in range(2):
        refresh(folder_store, pair_ids(4), f"look {night}")
    clean_up(RolledBackMeanwhile(folder_store), CAMPAIGN, keep_runs=2, now=time.time() + 10 * DAYS)
    assert read_pointer(folder_store, CAMPAIGN)[0].run_id == old.run_id
    assert read_run(folder_store, CAMPAIGN, old.run_id).state == "COMPLETE"
    assert folder_store.head(old.document.manifest[0].key)


def test_an_object_refreshed_after_it_was_listed_is_spared(tmp_path: Path):
    class Refreshed(WrappedStorage):
        def act(self, name: str, *arguments):
            if name == "head" and arguments[0] == uri:
                put_object(store, b"wanted again", "webp", refresh_after_seconds=0)
            return super().act(name, *arguments)

    store = FolderStorage(tmp_path)
    refresh(store, pair_ids(2))
    uri = put_object(store, b"wanted again", "webp").uri
    make_older(store.uri, uri, 10 * DAYS)
    assert clean_up(Refreshed(store), CAMPAIGN).objects == 0
    assert store.head(uri)


def test_files_of_a_zombie_under_a_removed_run_go_when_old(folder_store: Storage):
    run_id = layout.new_run_id()
    Journal(folder_store, CAMPAIGN, run_id).write_plan_part(0, pa.table({"pair_id": ["a"]}))
    refresh(folder_store, pair_ids(2))
    clean_up(folder_store, CAMPAIGN)
    assert [entry for entry in folder_store.entries("private/") if run_id in entry.key]
    clean_up(folder_store, CAMPAIGN, now=time.time() + 10 * DAYS)
    assert not [entry for entry in folder_store.entries("private/") if run_id in entry.key]


def test_clean_up_refuses_to_keep_less_than_two_runs_or_to_guess(folder_store: Storage):
    with pytest.raises(SettingsError, match="keep 2 or more"):
        clean_up(folder_store, CAMPAIGN, keep_runs=1)
    run = refresh(folder_store, pair_ids(4))
    folder_store.delete(run.document.manifest[0].key)
    with pytest.raises(ConsumerError, match="is gone"):
        clean_up(folder_store, CAMPAIGN, now=time.time() + 10 * DAYS)
    assert len(list(folder_store.entries(layout.OBJECTS))) == 3
    key = layout.run_document(CAMPAIGN, run.run_id)
    folder_store.swap(key, b"not JSON", folder_store.get(key).etag)
    with pytest.raises(StoreError, match="not a RunDocument"):
        clean_up(folder_store, CAMPAIGN, now=time.time() + 10 * DAYS)
