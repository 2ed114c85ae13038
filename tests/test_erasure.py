"""Forgetting a user: nothing of them is left, everything of the others is, at any crash."""

import shutil
from pathlib import Path

import pytest
from support.runs import CAMPAIGN, Crash, CrashingStorage, begin, commit_plan, do_shards, pair_ids, refresh

from adgen.creatives import layout
from adgen.creatives.erasure import finish_erasures, forget, forgotten_hashes, is_forgotten, user_hash
from adgen.creatives.folder import FolderStorage
from adgen.creatives.journal import Journal
from adgen.creatives.publish import read_pointer
from adgen.creatives.reading import open_published
from adgen.creatives.runs import list_runs
from adgen.creatives.storage import Storage
from adgen.creatives.verify import verify
from adgen.errors import OwnedElsewhere

KEY = b"a key that never rotates"
PAIRS = pair_ids(12)
USER = f"user-{PAIRS[0][0]}"  # small_runs: the first digit of a pair is its user
OTHERS = sorted(pair for pair in PAIRS if f"user-{pair[0]}" != USER)


def forget_user(store: Storage):
    return forget(store, KEY, [USER], patience_seconds=0.0)


def assert_forgotten(store: Storage) -> None:
    published = open_published(store, CAMPAIGN)
    assert sorted(row["pair_id"] for row in published.rows()) == OTHERS
    assert verify(store, CAMPAIGN).problems == []
    theirs = [pair.encode() for pair in PAIRS if pair not in OTHERS]
    for entry in store.entries(""):
        data = store.read(entry.key)
        assert not any(pair in data for pair in theirs), entry.key
        assert f'"{USER}"'.encode() not in data, entry.key
    for run in list_runs(store, CAMPAIGN):
        journal = Journal(store, CAMPAIGN, run.run_id)
        for part in journal.read_plan().parts:
            assert USER not in journal.read_lineage(part.index)["user_id"].to_pylist()
            assert set(journal.read_part(part.index)["pair_id"].to_pylist()) <= set(OTHERS)


def test_a_forgotten_user_is_gone_from_every_run_and_object(store: Storage):
    refresh(store, PAIRS, "old")
    refresh(store, PAIRS, "new")
    num_objects = len(list(store.entries("objects/")))
    receipt = forget_user(store)
    assert_forgotten(store)
    assert receipt.runs == 2
    assert receipt.objects >= 1
    assert len(list(store.entries("objects/"))) == num_objects - receipt.objects
    assert read_pointer(store, CAMPAIGN)[0].generation == 3
    assert is_forgotten(store, KEY, USER)
    assert not is_forgotten(store, KEY, "user-x")
    assert forgotten_hashes(store) == {user_hash(KEY, USER)}


def test_pictures_that_an_evaluation_kept_are_forgotten_too(store: Storage):
    refresh(store, PAIRS)
    for pair in PAIRS:
        store.put(layout.unpasted_picture(CAMPAIGN, pair, "0" * 64), b"painted")
    forget_user(store)
    assert_forgotten(store)
    kept = {entry.key for entry in store.entries("private/campaigns/") if "/unpasted/" in entry.key}
    assert kept == {layout.unpasted_picture(CAMPAIGN, pair, "0" * 64) for pair in OTHERS}


def test_forgetting_twice_or_nobody_publishes_nothing_new(folder_store: Storage):
    refresh(folder_store, PAIRS)
    forget_user(folder_store)
    again = forget_user(folder_store)
    assert (again.runs, again.objects) == (0, 0)
    assert forget(folder_store, KEY, ["user-x"]).runs == 0
    assert read_pointer(folder_store, CAMPAIGN)[0].generation == 2
    assert_forgotten(folder_store)


def test_an_object_that_another_row_names_stays(folder_store: Storage):
    """Two campaigns may show one picture; here the same rows are in both, and the user is another person's in one."""
    refresh(folder_store, PAIRS)
    shared = next(row["uri"] for row in open_published(folder_store, CAMPAIGN).rows() if row["pair_id"] == PAIRS[0])
    assert folder_store.head(shared)
    run = begin(folder_store)
    journal = commit_plan(run, PAIRS)
    part = journal.unfinished()[0]
    rows = Journal(folder_store, CAMPAIGN, list_runs(folder_store, CAMPAIGN)[1].run_id).read_part(0)
    journal.commit_part(part, rows.replace_schema_metadata(None))  # no lineage: nothing says whose it is
    run.release()
    forget_user(folder_store)
    assert folder_store.head(shared)


def test_while_a_refresh_is_running_only_the_tombstone_is_set(folder_store: Storage):
    refresh(folder_store, PAIRS)
    run = begin(folder_store, "next")
    commit_plan(run, PAIRS)
    with run.beating(every_seconds=0.05), pytest.raises(OwnedElsewhere, match=run.owner):
        forget(folder_store, KEY, [USER], patience_seconds=5.0)
    assert is_forgotten(folder_store, KEY, USER)
    assert read_pointer(folder_store, CAMPAIGN)[0].generation == 1


def test_a_plan_that_was_never_committed_is_forgotten_too(folder_store: Storage):
    refresh(folder_store, PAIRS)
    left = begin(folder_store, "next")
    Journal(folder_store, CAMPAIGN, left.run_id).write_plan_part(0, make_pairs_with_users())
    forget_user(folder_store)
    assert left.run_id not in {run.run_id for run in list_runs(folder_store, CAMPAIGN)}
    assert_forgotten(folder_store)


def make_pairs_with_users():
    import pyarrow as pa

    return pa.table({"pair_id": PAIRS, "user_id": [f"user-{pair[0]}" for pair in PAIRS]})


def test_an_erasure_that_dies_anywhere_is_finished_by_the_next(tmp_path: Path):
    before, at = FolderStorage(tmp_path / "before"), 0
    refresh(before, PAIRS, "old")
    refresh(before, PAIRS, "new")
    do_shards(commit_plan(begin(before, "interrupted"), PAIRS), "half done")
    while True:
        store = FolderStorage(tmp_path / str(at))
        shutil.copytree(before.root, store.root)
        try:
            forget(CrashingStorage(store, at), KEY, [USER], patience_seconds=0.0)
            break
        except Crash:
            rows = {row["pair_id"] for row in open_published(store, CAMPAIGN).rows()}
            assert rows in (set(OTHERS), set(PAIRS))
            if at % 2:  # by whoever asks for it again, or by the next refresh, which does not know the user
                finish_erasures(store, KEY, patience_seconds=0.0)
            if not at % 2 or not is_forgotten(store, KEY, USER):
                forget_user(store)
        assert_forgotten(store)
        at += 13  # every part of it is met; each single act would take a minute
    assert at > 100


def test_an_erasure_that_a_running_refresh_kept_back_is_finished_later(store: Storage):
    refresh(store, PAIRS)
    assert finish_erasures(store, KEY) is None
    run = begin(store, "next")
    with run.beating(every_seconds=0.05), pytest.raises(OwnedElsewhere):
        forget(store, KEY, [USER, "user-who-was-never-here"], patience_seconds=5.0)
    run.release()
    assert finish_erasures(store, KEY, patience_seconds=0.0).runs == 2
    assert_forgotten(store)
    assert finish_erasures(store, KEY) is None


def test_tombstones_name_nobody(folder_store: Storage):
    refresh(folder_store, PAIRS)
    forget_user(folder_store)
    for entry in folder_store.entries("private/forgotten/"):
        assert USER not in entry.key
        assert USER.encode() not in folder_store.read(entry.key)
    with pytest.raises(ValueError, match="empty key"):
        user_hash(b"", USER)
